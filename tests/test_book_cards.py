"""Model cards and the front page's pictures are made from the records alone."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from ncsn_book import gallery
from ncsn_core import pretrained
from ncsn_core.book.cards import card, results_card
from ncsn_core.book.figures import mosaic
from ncsn_core.book.show import markdown_table

STATIC = Path(__file__).parents[1] / "book" / "_static"
NCSN = pretrained.available("ncsn")


def test_a_table_has_a_line_for_each_row():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


@pytest.mark.parametrize("name", pretrained.available())
def test_a_card_names_origin_and_hashes(name):
    record = pretrained.load(name)
    text = card(record)
    assert record.weights_sha256[:16] in text
    rounded = record.manifest.get("rounded_from")
    assert (f"| rounded from | `{str(rounded)[:16]}…` |" in text) == bool(rounded)
    assert record.sessions[-1]["device"] in text
    assert record.sessions[-1]["commit"] in text


def test_a_card_tells_from_which_step_on_a_run_was_computed_elsewhere():
    record = pretrained.load("mnist")
    first = record.sessions[0] | {"device": "a laptop", "precision": "32-true", "commit": "abc"}
    sessions = [
        first,
        first | {"from_step": 4000, "commit": "def"},
        first | {"from_step": 12_000, "device": "Tesla T4", "commit": "def"},
    ]
    manifest = record.manifest | {"provenance": record.provenance | {"sessions": sessions}}
    text = card(pretrained.Model(record.folder, manifest))
    assert "| device | a laptop; from step 12,000: Tesla T4 |" in text
    assert "| commit | abc; from step 4,000: def |" in text
    assert "| precision | 32-true |" in text


def test_several_cards_stand_side_by_side():
    names = pretrained.available("classifier")
    lines = card(*[pretrained.load(name) for name in names]).splitlines()
    assert lines[0] == f"|  | {' | '.join(names)} |"
    data = next(line for line in lines if line.startswith("| data |"))
    assert data == "| data | mnist | fashion_mnist |"


def test_a_card_says_what_sets_a_variant_apart(record):
    manifest = record.manifest | {
        "step": 3,
        "config": record.config | {"parametrization": "energy", "objective": "sliced"},
        "provenance": pretrained.load("mnist").provenance,
    }
    text = card(pretrained.Model(record.folder, manifest))
    assert "parameters; the gradient of an energy |" in text
    assert "sliced, 3 steps" in text


def test_a_card_says_what_a_run_started_from_and_that_nothing_was_averaged(record):
    start = {"weights_sha256": "ab" * 32, "name": "first", "step": 12000, "commit": "abc123"}
    manifest = record.manifest | {
        "step": 3,
        "config": record.config | {"ema_decay": 0.0},
        "provenance": pretrained.load("mnist").provenance | {"started_from": start},
    }
    text = card(pretrained.Model(record.folder, manifest))
    origin = "the weights `abababababababab…` of the run first, 12,000 steps, commit abc123"
    assert f"| started from | {origin} |" in text
    assert "last weights, not averaged |" in text
    assert "moving average" not in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(89.0, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (5400.0, "1.5 h")]
)
def test_a_card_names_the_time_in_a_unit_that_fits(seconds, text):
    record = pretrained.load(pretrained.available("classifier")[0])
    manifest = record.manifest | {"provenance": record.provenance | {"seconds": seconds}}
    assert f"| time | {text} |" in card(pretrained.Model(record.folder, manifest))


def test_a_card_says_that_a_network_knows_every_noise_level():
    text = card(pretrained.load("mnist14_continuous"))
    assert "at every noise level between the ends, preconditioned" in text
    assert "from 8 to 0.01" in text


def test_results_need_a_bundle():
    with pytest.raises(ValueError, match="no results bundles"):
        results_card(pretrained.load(NCSN[0]), [])


def test_results_stand_beside_floor_and_ceiling_with_their_count():
    model = pretrained.load("mnist")
    bundle = model.bundle(gallery.BUNDLE)
    text = results_card(model, [bundle])
    assert "floor" in text
    assert f"| images | {bundle.metrics['count']:,} |" in text
    assert f"{bundle.metrics['fid']['samples']:,.1f}" in text


def test_the_readme_shows_the_first_samples_of_the_shipped_network(tmp_path):
    drawn = gallery.write(tmp_path)
    with Image.open(STATIC / drawn.name) as shown, Image.open(drawn) as expected:
        assert np.array_equal(np.asarray(shown.convert("L")), np.asarray(expected)), (
            "the README shows other samples: run `make gallery`"
        )


def test_the_front_page_ends_where_the_chains_end():
    found = re.findall(r'base64,([^"]+)".*?data-label="([^"]+)"', gallery.emerging())
    assert found[0][1] == "σ = 1, step 1"
    assert found[-1][1] == "σ = 0.01, step 1000"
    frames = pretrained.load("mnist").bundle(gallery.BUNDLE).tensors("results")["frames"]
    with Image.open(io.BytesIO(base64.b64decode(found[-1][0]))) as picture:
        shown = np.asarray(picture.convert("L")).astype(int)
    assert np.abs(shown - 255 * mosaic(frames[-1])).max() <= 255 / 14 + 1  # eight levels


def figure(gray):
    file = io.BytesIO()
    Image.new("L", (600, 300), gray).save(file, "PNG")
    png = base64.b64encode(file.getvalue()).decode()
    look = {"image": {"alt": f"Gray <{gray}>."}, "figure": {"name": f"fig-{gray}"}}
    outputs = [new_output("stream", text="1\n"), new_output("display_data", {"image/png": png})]
    return new_code_cell("draw()", outputs=outputs, metadata={"mystnb": look})


def test_a_thumbnail_is_the_figure_that_is_named():
    notebook = new_notebook(cells=[new_markdown_cell("# T"), figure(10), figure(20), figure(30)])
    html = gallery.thumbnail(notebook, "fig-20")
    assert 'alt="Gray &lt;20&gt;."' in html
    with Image.open(io.BytesIO(base64.b64decode(html.split("base64,")[1][:-2]))) as picture:
        assert picture.size == (480, 240)
        assert picture.convert("RGBA").getpixel((0, 0)) == (20, 20, 20, 255)
    assert gallery.thumbnail(notebook, "fig-40") == ""
