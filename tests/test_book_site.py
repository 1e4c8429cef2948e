"""The site: what its pages show, rendering them, and the commands around it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ncsn_book import execution, pages
from ncsn_book.__main__ import main
from ncsn_book.execution import EXECUTED, Outcome, executed_path
from ncsn_book.inserts import BLOCKS
from ncsn_core.book import claims
from ncsn_core.book.ledger import find_ledger, load_ledger
from ncsn_core.files import exclusive

REPOSITORY = Path(__file__).resolve().parents[1]
FIRST, SECOND = Path("notebooks/10_ncsn.ipynb"), Path("notebooks/20_second.ipynb")
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
PYTHON = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FIGURE = {
    "mystnb": {
        "image": {"alt": "One grey pixel.", "classes": "pixelated"},
        "figure": {"caption": r"A pixel of $\sigma$.", "name": "fig-pixel"},
    }
}


def verdict(value):
    """Return the output of `claims.check(16, value)`."""
    record = {"claim": 16, "part": "", "value": value, "spread": [value, value]}
    found = claims.from_metadata(record, load_ledger())
    data = {"text/plain": str(found), "text/markdown": found.markdown()}
    return new_output("display_data", data, metadata={"ncsn": record})


def chapter(value=-0.98, title="Ten"):
    """Return an executed chapter with a figure, a verdict and a record of its execution."""
    pixel = new_output("display_data", {"image/png": PIXEL, "text/plain": "pixel"})
    noise = new_output("stream", name="stderr", text="a progress bar\n")
    cells = [
        new_markdown_cell(f"# {title}\n\nSee {{numref}}`fig-pixel` and {{eq}}`eq-score`."),
        new_code_cell("plt.show()", outputs=[pixel], metadata=FIGURE, execution_count=1),
        new_code_cell(
            "claims.check(16, x)",
            outputs=[noise, verdict(value)],
            metadata={"tags": ["nbval-ignore-output"]},
            execution_count=2,
        ),
    ]
    record = {
        "commit": "abc",
        "device": "cpu",
        "threads": 2,
        "seconds": 34.2,
        "time": "2031-05-17T08:30:00+00:00",
        "parameters": {"profile": "smoke"},
    }
    return new_notebook(cells=cells, metadata={**PYTHON, "ncsn": record})


def write(path, notebook):
    path.parent.mkdir(parents=True, exist_ok=True)
    for position, cell in enumerate(notebook.cells):
        cell.id = f"cell-{position}"
    nbformat.write(notebook, path)


def write_toc(root, *files):
    entries = "".join(f"  - file: {file}\n" for file in files)
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: book/intro\nchapters:\n{entries}")


INTRO = r"""# The book

{cite:t}`song2019` minimize

$$
\E \|s_\theta(x, \sigma)\|^2
$$ (eq-score)

```{bibliography}
```
"""
BLOCK = "```{{ncsn-block}} {}\n```\n"
NUMBERS = """# Numbers

The exponent is {measured}`16`, see
{claim}`16`: {claims}`holds` of {claims}`all`, and {promise}`coverage:lines` % of the lines.

""" + "\n".join(BLOCK.format(name) for name in BLOCKS if name != "scorecard")
NUMBERS += "\n## The claims\n\n" + BLOCK.format("scorecard")
WRONG = """# Numbers

There are no {measured}`9999` and
no {claim}`9998`,
no {measured}`16:tail` and no {claims}`perhaps`, no
{promise}`coverage:age`.

""" + BLOCK.format("cards")
REFERENCES = """@article{song2019, author={Song, Yang and Ermon, Stefano}, title={Gradients},
journal={NeurIPS}, year={2019}}
"""


def make_book(root):
    """Write a small book with the configuration and style of the real one."""
    shutil.copy(REPOSITORY / "_config.yml", root)
    shutil.copytree(REPOSITORY / "book" / "_static", root / "book" / "_static")
    (root / "book" / "_ext").symlink_to(REPOSITORY / "book" / "_ext")
    (root / "book" / "intro.md").write_text(INTRO)
    (root / "book" / "references.bib").write_text(REFERENCES)
    (root / "book" / "numbers.md").write_text(NUMBERS)
    write_toc(root, FIRST.with_suffix(""), SECOND.with_suffix(""), "book/numbers")
    write(root / FIRST, chapter())
    write(root / SECOND, new_notebook(cells=[new_markdown_cell("# Second")]))
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_book(tmp_path)


# --- what a page shows --------------------------------------------------------------------------


class App:
    """What the functions of the extension ask of Sphinx."""

    def __init__(self, root, executed=False):
        self.srcdir, self.outdir = root, root / "_build" / "html"
        self.config = SimpleNamespace(ncsn_executed=executed)


def execute(root, page, executed):
    """Store an executed copy as a run of the notebook would."""
    write(executed_path(root, page), executed)
    made = execution.made_from(root, page, {}, [])
    execution._made_path(root, page).write_text(json.dumps(made))
    return executed_path(root, page)


def test_a_chapter_shows_its_stored_outputs_or_the_executed_ones_that_are_asked_for(root):
    copies = {page: execute(root, page, nbformat.read(root / page, 4)) for page in (FIRST, SECOND)}
    assert pages.shown(App(root)) == {page: root / page for page in copies}
    assert pages.shown(App(root, executed=True)) == copies


def test_a_chapter_that_was_not_executed_since_it_changed_is_named(root, monkeypatch):
    warnings = []
    monkeypatch.setattr(
        pages.logger,
        "warning",
        lambda text, *args, location: warnings.append(f"{location}: {text % args}"),
    )
    execute(root, FIRST, chapter())
    write(root / FIRST, chapter(title="Eleven"))
    assert pages.shown(App(root, executed=True))[FIRST] == root / FIRST
    command = "run `make execute ARGS="
    assert warnings == [
        f"notebooks/10_ncsn: has not been executed (changed: notebook): {command}10_ncsn`",
        f"notebooks/20_second: has not been executed (no executed copy yet): {command}20_second`",
    ]


def test_a_page_of_numbers_depends_on_chapters_ledger_records_and_copies_that_may_come(root):
    stored = pages.ingredients(App(root))
    assert {str(root / FIRST), str(root / SECOND), str(find_ledger())} < stored
    assert any(path.endswith("promises/manifest.json") for path in stored)
    copies = {str(executed_path(root, page)) for page in (FIRST, SECOND)}
    assert pages.ingredients(App(root, executed=True)) == stored | copies


def test_a_removed_page_does_not_linger_and_every_page_is_made_anew(root):
    app, env = App(root), SimpleNamespace(found_docs={"book/intro", "book/numbers"})
    old = app.outdir / "book" / "old.html"
    old.parent.mkdir(parents=True)
    old.touch()
    assert pages.outdated(app, env, set(), set(), {"book/old"}) == env.found_docs
    assert not old.exists()
    assert pages.outdated(app, env, {"book/intro"}, set(), set()) == {"book/numbers"}
    assert pages.outdated(app, env, set(), {"book/intro"}, set()) == set()


def test_a_page_shows_the_measured_value_and_how_it_was_made():
    original = chapter()
    published = pages.publish(original, load_ledger())
    html = published.cells[2].outputs[1].data["text/html"]
    assert '<p id="measured-16" class="ncsn-claim holds"><strong><a href=' in html
    assert 'scorecard.html#claim-16">Claim 16 holds</a>:</strong>' in html
    assert "; accepted: within [−1.1, −0.9]; paper: −1.</p>" in html
    assert " is −0.98 [−0.98, −0.98] (95% confidence interval of a line through" in html
    assert (
        "commit abc, profile smoke, device cpu, threads 2, time 34 s, date 2031-05-17"
        in published.cells[-1].source
    )
    assert len(original.cells) == 3
    assert "text/html" not in original.cells[2].outputs[1].data


def test_a_page_names_no_number_of_the_paper_where_the_paper_has_none():
    output = verdict(0.05)
    output.metadata["ncsn"]["claim"] = 18
    notebook = new_notebook(cells=[new_code_cell("claims.check(18, x)", outputs=[output])])
    published = pages.publish(notebook, load_ledger())
    html = published.cells[0].outputs[0].data["text/html"]
    assert "Claim 18 holds</a>:" in html
    assert " is 0.05 [0.05, 0.05] (" in html
    assert html.endswith("accepted: at most 0.2.</p>")


def test_a_page_without_record_has_no_last_line():
    notebook = new_notebook(cells=[new_markdown_cell("# Title")])
    assert len(pages.publish(notebook, {}).cells) == 1


# --- rendering, with the book's own configuration -----------------------------------------------


def build(root, *, executed=False):
    """Render as `make html` and `make book` do; returns what is wrong, or ""."""
    command = [Path(sys.executable).with_name("jupyter-book"), "build", root]
    result = subprocess.run(
        [*command, "-q", "-W", "-n", "--keep-going"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "NCSN_EXECUTED": "1" if executed else ""},
    )
    lines = (result.stdout + result.stderr).replace(f"{root}{os.sep}", "").splitlines()
    wrong = [line for line in lines if "WARNING" in line or "ERROR" in line or "rror:" in line]
    assert bool(wrong) == (result.returncode != 0), lines
    return "\n".join(wrong)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Build a broken book, then repair it; return its folder, what was wrong and times of pages."""
    root = make_book(tmp_path_factory.mktemp("book"))
    notebook = chapter()
    notebook.cells.append(new_markdown_cell("A link to {ref}`nowhere`."))
    write(root / FIRST, notebook)
    (root / "book" / "numbers.md").write_text(WRONG)
    wrong = build(root)
    times = rendering_times(root)
    assert "holds no claim 9998" in build(root)  # nothing has changed, and it is still wrong
    write(root / FIRST, chapter())
    (root / "book" / "numbers.md").write_text(NUMBERS)
    assert build(root) == ""
    return root, wrong, times


def rendering_times(root):
    html = root / "_build" / "html" / "notebooks"
    return {path.name: path.stat().st_mtime_ns for path in html.glob("*.html")}


@pytest.mark.slow
def test_a_build_fails_on_a_warning_or_an_error_and_names_page_and_line(rendered):
    _, wrong, _ = rendered
    lines = [line for line in wrong.splitlines() if "book/numbers.md" in line]
    assert "undefined label: 'nowhere'" in wrong
    assert [re.search(r"book/numbers.md:(\d+): .*ERROR", line)[1] for line in lines] == list(
        "345568"
    )
    for what, line in zip(
        (
            "holds no claim 9999",
            "holds no claim 9998",
            "claim 16 has no part 'tail'",
            "none are 'perhaps'",
            "has measured no 'age' of 'coverage'",
            "no block is called 'cards': emerging, ",
        ),
        lines,
        strict=True,
    ):
        assert what in line


@pytest.mark.slow
def test_the_repaired_book_has_no_role_that_is_not_filled(rendered):
    root, _, _ = rendered
    page = (root / "_build/html/book/numbers.html").read_text()
    assert "The exponent is −0.98 [−0.98, −0.98], see\n<a" in page
    assert re.search(r'href="#claim-16"><span class="std std-ref">claim 16 \(holds\)</span>', page)
    assert f">: 1 of {len(load_ledger())}, and 9" in page.replace("</a>", ">").replace("<p>", "")
    assert page.count("<table") == 8 + len(load_ledger())
    assert 'href="../notebooks/10_ncsn.html#measured-16"' in page
    for unfilled in ("{measured}", "{claim}", "{claims}", "{promise}", "ncsn-block", "problematic"):
        assert unfilled not in page


@pytest.mark.slow
def test_only_a_changed_page_is_rendered_again(rendered):
    root, _, before = rendered
    after = rendering_times(root)
    assert after["20_second.html"] == before["20_second.html"]
    assert after["10_ncsn.html"] != before["10_ncsn.html"]


@pytest.mark.slow
def test_executed_outputs_reach_every_page_and_a_public_site_offers_stamped_notebooks(tmp_path):
    root = make_book(tmp_path)
    wrong = build(root, executed=True)  # as nothing has been executed, what is stored is shown
    assert re.search("10_ncsn.*WARNING.* has not been executed .no executed copy yet", wrong)
    html = root / "_build" / "html"
    offered = html / "_sources" / FIRST
    assert "σ is −0.98 [" in (html / FIRST.with_suffix(".html")).read_text()
    assert nbformat.read(offered, 4) == nbformat.read(root / FIRST, 4)
    assert "colab.research.google.com" not in (html / FIRST.with_suffix(".html")).read_text()

    execute(root, FIRST, chapter(value=-1.05))
    execute(root, SECOND, nbformat.read(root / SECOND, as_version=4))
    assert build(root, executed=True) == ""
    page = (html / FIRST.with_suffix(".html")).read_text()
    assert "σ is −1.05 [" in page
    assert "−1.05 [" in (html / "book" / "numbers.html").read_text()

    config = (root / "_config.yml").read_text()
    address = "https://github.com/somebody/book"
    (root / "_config.yml").write_text(config.replace('  url: ""', f"  url: {address}"))
    assert build(root) == ""
    page = (html / FIRST.with_suffix(".html")).read_text()
    assert "σ is −0.98 [" in page
    assert "−0.98 [" in (html / "book" / "numbers.html").read_text()
    assert "colab.research.google.com/github/somebody/book/blob/gh-pages/_sources" in page
    assert "ncsn-core @" not in page
    assert "ncsn-core @ https://somebody.github.io/book/ncsn_core-" in offered.read_text()


@pytest.mark.slow
def test_figures_have_number_caption_reference_and_alternative_text(rendered):
    root, _, _ = rendered
    page = (root / "_build/html/notebooks/10_ncsn.html").read_text()
    image = re.search(r"<img[^>]*>", page[page.index('<figure class="align-default"') :])[0]
    assert 'alt="One grey pixel."' in image
    assert 'class="pixelated"' in image
    assert '<figure class="align-default" id="fig-pixel">' in page
    assert '<span class="caption-number">Fig. 1 </span>' in page
    assert '<a class="reference internal" href="#fig-pixel">' in page
    assert re.search(r'href="../book/intro.html#equation-eq-score">\(1\)</a>', page)


@pytest.mark.slow
def test_the_page_shows_verdict_and_record_but_no_progress_bar(rendered):
    root, _, _ = rendered
    page = (root / "_build/html/notebooks/10_ncsn.html").read_text()
    assert 'class="ncsn-claim holds"' in page
    assert "ncsn-provenance" in page
    assert "a progress bar" not in page


@pytest.mark.slow
def test_pages_ask_nothing_of_other_servers(rendered):
    root, _, _ = rendered
    html = root / "_build" / "html"
    for name in ("notebooks/10_ncsn.html", "book/intro.html", "search.html"):
        page = (html / name).read_text()
        assert not re.findall(r"""<(?:script|img|iframe)[^>]*src=["'](?:https?:)?//""", page)
        assert not re.findall(r"""<link[^>]*href=["'](?:https?:)?//""", page)
        assert "unpkg" not in page
    for script in re.findall(r'src="([^"]*mathjax[^"]*)"', (html / "book/intro.html").read_text()):
        assert (html / "book" / script.split("?")[0]).resolve().is_file()
        break
    else:
        pytest.fail("no MathJax in a page that has formulas")


# --- the commands -------------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize("command", ["execute", "refresh", "scorecard"])
def test_every_command_says_when_it_is_outside_the_book(command, tmp_path, monkeypatch):
    assert invoke(command, "--help").exit_code == 0
    monkeypatch.chdir(tmp_path)
    result = invoke(command)
    assert result.exit_code == 1
    assert "no _toc.yml" in result.stderr


def test_the_scorecard_reads_executed_outputs_before_stored_ones(root):
    result = invoke("scorecard")
    assert result.exit_code == 0
    assert result.stdout.startswith("Claims: 1 holds, 0 fails, 0 undecided, ")
    assert "17 not measured, NOT expected: " in result.stdout
    write(executed_path(root, FIRST), chapter(value=-2.0))
    result = invoke("scorecard")
    assert result.exit_code == 1
    assert re.search(r"^  16 fails, NOT expected: .*: −2 \[−2, −2\]$", result.stdout, re.MULTILINE)
    assert result.stderr == "Error: claims that should hold and do not: 16\n"


def test_the_complete_scorecard_misses_what_a_chapter_left_out(root):
    result = invoke("scorecard", "--complete")
    assert result.exit_code == 1
    assert "should hold and do not: 17" in result.stderr
    write(root / FIRST, new_notebook(cells=[new_code_cell("claims.check(16, x)")]))
    assert invoke("scorecard", "--complete").exit_code == 0  # it has not been executed


def test_parameters_need_a_chapter(root):
    result = invoke("execute", "-p", "profile", "cpu")
    assert result.exit_code == 1
    assert "belong to one chapter" in result.stderr


@pytest.fixture
def counted(root, monkeypatch):
    """Chapters are executed by nobody; returns what was asked for."""
    asked = []

    def execute(root, page, *, parameters=None, force=False, timeout=None, report=print):
        asked.append((page, parameters, force, timeout))
        write(executed_path(root, page), nbformat.read(root / page, as_version=4))
        return Outcome(page)

    monkeypatch.setattr(execution, "execute", execute)
    return asked


def test_chapters_that_failed_are_counted_and_named_and_the_others_run(counted, root, monkeypatch):
    run = execution.execute

    def fail(root, page, **options):
        outcome = run(root, page, **options)
        return Outcome(page, failure="cell 3 of 3") if page == FIRST else outcome

    monkeypatch.setattr(execution, "execute", fail)
    result = invoke("execute", "--jobs", "1")
    assert result.exit_code == 1
    assert result.stderr == f"Error: 1 of 2 chapters failed: {FIRST}\n"
    assert [page for page, *_ in counted] == [FIRST, SECOND]


def test_parameters_reach_the_one_chapter_that_is_named(counted):
    result = invoke("execute", FIRST.stem, "-p", "seed", "3", "-p", "name", "x", "--timeout", "9")
    assert result.exit_code == 0, result.output
    assert counted == [(FIRST, {"seed": 3, "name": "x"}, False, 9.0)]


def test_refreshing_says_what_changed(counted, root):
    result = invoke("refresh", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert f"{FIRST}: already up to date" in result.output


def test_one_execution_at_a_time(counted, root):
    with exclusive(root / EXECUTED):
        result = invoke("execute")
    assert result.exit_code == 1
    assert "another process is writing into" in result.stderr
    assert counted == []


def test_the_gallery_is_drawn_from_the_shipped_results(root):
    result = invoke("gallery")
    assert result.exit_code == 0, result.output
    assert (root / result.output.strip()).stat().st_size > 10_000
