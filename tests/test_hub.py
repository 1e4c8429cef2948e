"""Model cards for hubs: what stands in them is in the record, and what is not there is not told."""

import pytest
import yaml

from ncsn_core import checkpoints, pretrained
from ncsn_core.errors import NCSNError
from ncsn_core.hub import hub_card


def front(text):
    """The front matter as a hub reads it: YAML between the first two lines of dashes."""
    _, matter, page = text.split("---\n", 2)
    return yaml.safe_load(matter), page


def test_the_front_matter_of_a_shipped_network_is_what_hubs_read():
    matter, page = front(hub_card(pretrained.load("mnist")))
    assert matter["license"] == "mit"
    assert matter["library_name"] == "ncsn-core"
    assert matter["datasets"] == ["mnist"]
    assert matter["metrics"] == ["fid"]
    assert "score-matching" in matter["tags"]
    assert page.startswith("\n# mnist\n")


def test_every_number_of_the_card_is_in_the_record():
    model = pretrained.load("mnist")
    text = hub_card(model)
    assert f"- weights, SHA-256: `{model.weights_sha256}`" in text
    assert "- training steps: 12,000" in text
    assert "- parameters: 518,817" in text
    for name in ("epsilon_2e-5", "epsilon_4e-5"):
        measured = model.bundle(name).metrics
        assert f"ε = {measured['epsilon']:g}" in text
        for row, value in measured["fid"].items():
            assert f"| {row.replace('_', ' ')} | {value:,.1f} |" in text


def test_nothing_is_told_that_was_not_measured_or_is_not_known(record, tmp_path):
    matter, page = front(hub_card(pretrained.model(record)))
    assert matter["license"] == "unknown"
    assert "metrics" not in matter
    assert "distance" not in page
    assert front(hub_card(pretrained.model(record), license="cc0-1.0"))[0]["license"] == "cc0-1.0"


def test_distances_of_other_weights_are_left_out(record):
    metrics = {"fid": {"samples": 3.0}}
    origin = {"weights_sha256": "0" * 64}
    folder = record.folder / "bundles" / "b"
    checkpoints.save(folder, {}, kind="bundle", metrics=metrics, provenance=origin)
    assert "metrics" not in front(hub_card(pretrained.model(record)))[0]


def test_a_converted_network_has_a_card_too(tmp_path, record):
    sizes = ("dataset", "image_channels", "image_size", "channels", "levels", "keep_means")
    config = {name: record.config[name] for name in (*sizes, "sigma_max", "sigma_min")}
    origin = {"commit": "abc", "converted_from": {"file": "x.pth", "sha256": "ab" * 32}}
    weights = {"weights": record.tensors()}
    converted = checkpoints.save(
        tmp_path / "c", weights, kind="ncsn", config=config, step=None, provenance=origin
    )
    text = hub_card(pretrained.model(converted))
    assert f"- converted from: `x.pth`, SHA-256 `{'ab' * 32}`" in text
    assert "steps" not in text


def test_a_classifier_has_no_such_card():
    with pytest.raises(NCSNError, match="of kind 'classifier' and not 'ncsn'"):
        hub_card(pretrained.load("digit_classifier"))


def test_export_for_a_hub_writes_weights_and_card_and_overwrites_no_other(ncsn, tmp_path):
    folder = tmp_path / "to_upload"
    code, _, err = ncsn("export", "mnist14_ncsn", folder, "--hub")
    assert (code, err) == (0, "")
    assert front((folder / "README.md").read_text())[0]["datasets"] == ["mnist"]
    assert pretrained.load(folder).tensors()
    assert list(folder.glob("*.safetensors"))
    assert ncsn("export", "mnist14_ncsn", folder, "--hub")[0] == 0

    (folder / "README.md").write_text("mine")
    code, _, err = ncsn("export", "mnist14_ncsn", folder, "--hub")
    assert code == 1
    assert "README.md is there and may be yours" in err
    assert (folder / "README.md").read_text() == "mine"


def test_export_takes_the_folder_and_says_what_a_file_is(ncsn, tmp_path):
    (tmp_path / "checkpoint.pth").write_bytes(b"")
    code, _, err = ncsn("export", tmp_path / "checkpoint.pth", tmp_path / "out")
    assert (code, err.count("\n")) == (1, 1)
    assert "is made ours first, by ncsn convert" in err
