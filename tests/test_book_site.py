"""The site: collecting its sources, rendering them, and the commands around it."""

import http.server
import os
import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ncsn_core.book import cache, runner, site
from ncsn_core.book.cli import book
from ncsn_core.book.ledger import load_ledger
from ncsn_core.book.tree import BookError
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
    data = {"text/plain": "Claim 16 ...", "text/markdown": "**Claim 16** ..."}
    record = {"claim": 16, "part": "", "value": value, "spread": [value, value]}
    return new_output("display_data", data, metadata={"ncsn": record})


def chapter(value=-0.98, title="Ten"):
    """Return an executed chapter with a figure, a verdict and a record of its execution."""
    pixel = new_output("display_data", {"image/png": PIXEL, "text/plain": "pixel"})
    noise = new_output("stream", name="stderr", text="a progress bar\n")
    cells = [
        new_markdown_cell(f"# {title}\n\nSee {{numref}}`fig-pixel` and {{eq}}`eq-score`."),
        new_code_cell("plt.show()", outputs=[pixel], metadata=FIGURE, execution_count=1),
        new_code_cell("claims.check(16, x)", outputs=[noise, verdict(value)], execution_count=2),
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
REFERENCES = """@article{song2019, author={Song, Yang and Ermon, Stefano}, title={Gradients},
journal={NeurIPS}, year={2019}}
"""


def make_book(root):
    """Write a small book with the configuration and style of the real one."""
    shutil.copy(REPOSITORY / "_config.yml", root)
    shutil.copytree(REPOSITORY / "book" / "_static", root / "book" / "_static")
    (root / "book" / "intro.md").write_text(INTRO)
    (root / "book" / "references.bib").write_text(REFERENCES)
    write_toc(root, FIRST.with_suffix(""), SECOND.with_suffix(""))
    write(root / FIRST, chapter())
    write(root / SECOND, new_notebook(cells=[new_markdown_cell("# Second")]))
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_book(tmp_path)


# --- collecting the sources ---------------------------------------------------------------------


def test_staging_copies_what_changed_and_removes_what_is_gone(root):
    assert site.stage(root) == []
    source = root / "_build" / "source"
    intro, first, second = source / "book" / "intro.md", source / FIRST, source / SECOND
    for path in (intro, first, second):
        os.utime(path, (1, 1))
    (root / "book" / "intro.md").write_text("# Another beginning")
    write_toc(root, FIRST.with_suffix(""))
    assert site.stage(root) == [SECOND]
    assert intro.read_text() == "# Another beginning"
    assert intro.stat().st_mtime != 1
    assert first.stat().st_mtime == 1
    assert not second.exists()


def test_staging_takes_stored_or_executed_outputs(root):
    write(cache.executed_path(root, FIRST), chapter(value=-1.05))
    write(cache.executed_path(root, SECOND), nbformat.read(root / SECOND, as_version=4))
    staged = root / "_build" / "source" / FIRST
    site.stage(root)
    assert "σ is −0.98 [" in staged.read_text()
    site.stage(root, executed=True)
    assert "σ is −1.05 [" in staged.read_text()


def test_staging_fills_in_measured_numbers(root):
    (root / "book" / "intro.md").write_text("# Book\n\nIt is {measured}`16`.\n")
    site.stage(root)
    staged = (root / "_build" / "source" / "book" / "intro.md").read_text()
    assert staged == "# Book\n\nIt is −0.98 [−0.98, −0.98].\n"


def test_notebooks_are_stamped_where_the_repository_is_named(root):
    staged = root / "_build" / "source"
    site.stage(root)
    assert "ncsn-core @" not in (staged / FIRST).read_text()
    config = (root / "_config.yml").read_text()
    address = "https://github.com/somebody/book"
    (root / "_config.yml").write_text(config.replace('  url: ""', f"  url: {address}"))
    site.stage(root)
    assert "ncsn-core @ https://somebody.github.io/book/ncsn_core-" in (staged / FIRST).read_text()
    assert "colab.research.google.com" in (staged / "_config.yml").read_text()


def test_a_chapter_that_was_not_executed_is_named(root):
    with pytest.raises(BookError, match="run `ncsn book execute 10_ncsn`"):
        site.stage(root, executed=True)


def test_a_page_shows_the_measured_value_and_how_it_was_made():
    original = chapter()
    published = site.publish(original, load_ledger())
    html = published.cells[2].outputs[1].data["text/html"]
    assert '<p id="measured-16" class="ncsn-claim holds"><strong>Claim 16 holds:</strong>' in html
    assert "; accepted: within [−1.1, −0.9]; paper: −1.</p>" in html
    assert " is −0.98 [−0.98, −0.98] (95 % confidence interval of a line through" in html
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
    html = site.publish(notebook, load_ledger()).cells[0].outputs[0].data["text/html"]
    assert "Claim 18 holds:" in html
    assert " is 0.05 [0.05, 0.05] (" in html
    assert html.endswith("accepted: at most 0.2.</p>")


def test_a_page_without_record_has_no_last_line():
    notebook = new_notebook(cells=[new_markdown_cell("# Title")])
    assert len(site.publish(notebook, {}).cells) == 1


# --- rendering, with the book's own configuration -----------------------------------------------


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Build a broken book strictly, then repair it; return its folder, error and times of pages."""
    root = make_book(tmp_path_factory.mktemp("book"))
    notebook = chapter()
    notebook.cells.append(new_markdown_cell("A link to {ref}`nowhere`."))
    write(root / FIRST, notebook)
    with pytest.raises(BookError) as error:
        site.build(root, strict=True)
    times = rendering_times(root)
    write(root / FIRST, chapter())
    assert site.build(root) == root / "_build" / "html" / "index.html"
    return root, str(error.value), times


def rendering_times(root):
    html = root / "_build" / "html" / "notebooks"
    return {path.name: path.stat().st_mtime_ns for path in html.glob("*.html")}


@pytest.mark.slow
def test_a_strict_build_fails_on_a_warning_and_names_the_page(rendered):
    _, message, _ = rendered
    assert "notebooks/10_ncsn.ipynb" in message
    assert "undefined label: 'nowhere'" in message
    assert len(message.splitlines()) == 2


@pytest.mark.slow
def test_the_repaired_book_has_no_warning(rendered):
    root, _, _ = rendered
    assert "WARNING" not in (root / "_build" / "site.log").read_text()


@pytest.mark.slow
def test_only_a_changed_page_is_rendered_again(rendered):
    root, _, before = rendered
    after = rendering_times(root)
    assert after["20_second.html"] == before["20_second.html"]
    assert after["10_ncsn.html"] != before["10_ncsn.html"]


def test_a_removed_page_does_not_linger(root, monkeypatch):
    html = root / "_build" / "html"

    def render(command, **options):
        for page in (root / "_build" / "source").rglob("*.ipynb"):
            rendered = html / page.relative_to(root / "_build" / "source").with_suffix(".html")
            rendered.parent.mkdir(parents=True, exist_ok=True)
            rendered.touch()
        (html / "index.html").touch()
        return SimpleNamespace(returncode=0, stdout="")

    monkeypatch.setattr(site.subprocess, "run", render)
    site.build(root)
    write_toc(root, FIRST.with_suffix(""))
    site.build(root)
    assert [page.name for page in (html / "notebooks").iterdir()] == ["10_ncsn.html"]


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
    return CliRunner().invoke(book, list(arguments))


@pytest.mark.parametrize(
    "command", ["build", "execute", "html", "refresh", "scorecard", "serve", ""]
)
def test_every_command_explains_itself(command):
    result = invoke(*([command] if command else []), "--help")
    assert result.exit_code == 0
    assert len(result.output.split()) > 25


@pytest.mark.parametrize("command", ["build", "execute", "html", "refresh", "scorecard", "serve"])
def test_every_command_says_when_it_is_outside_the_book(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(command)
    assert result.exit_code == 1
    assert "no _toc.yml" in result.stderr
    assert "inside a clone" in result.stderr


def test_the_scorecard_reads_stored_outputs_from_a_folder_below(root, monkeypatch):
    monkeypatch.chdir(root / "notebooks")
    result = invoke("scorecard")
    assert result.exit_code == 0
    assert re.search(r"^16 .*−0.98 \[−0.98, −0.98\] +holds", result.stdout, re.MULTILINE)
    assert "Claims: 1 hold, 0 fail" in result.stdout


def test_the_scorecard_fails_when_a_claim_that_should_hold_fails(root):
    write(root / FIRST, chapter(value=-2.0))
    result = invoke("scorecard")
    assert result.exit_code == 1
    assert "claims that should hold and fail: 16" in result.stderr


def test_the_scorecard_prefers_executed_outputs(root):
    write(cache.executed_path(root, FIRST), chapter(value=-2.0))
    assert invoke("scorecard").exit_code == 1
    assert invoke("scorecard", "--stored").exit_code == 0


def test_the_complete_scorecard_misses_what_a_chapter_left_out(root):
    result = invoke("scorecard", "--complete")
    assert result.exit_code == 1
    assert "not measured by their own chapters: 17" in result.stderr


def test_a_chapter_without_outputs_counts_as_not_executed(root):
    write(root / FIRST, new_notebook(cells=[new_code_cell("claims.check(16, x)")]))
    result = invoke("scorecard", "--complete")
    assert result.exit_code == 0
    assert "10_ncsn (not executed)" in result.stdout


def test_an_unknown_chapter_is_refused_with_the_known_ones(root):
    result = invoke("execute", "99")
    assert result.exit_code == 1
    assert "10_ncsn, 20_second" in result.stderr


def test_parameters_need_a_chapter(root):
    result = invoke("execute", "-p", "profile", "cpu")
    assert result.exit_code == 1
    assert "name it before --parameter" in result.stderr


def test_a_missing_tool_is_named_with_the_extra_that_brings_it(root, monkeypatch):
    def missing(root, **options):
        raise ModuleNotFoundError("No module named 'papermill'", name="papermill")

    monkeypatch.setattr(site, "build", missing)
    result = invoke("html")
    assert result.exit_code == 1
    assert "papermill is not installed" in result.stderr
    assert "ncsn-core[book]" in result.stderr


def test_serving_needs_a_site_and_a_free_port(root):
    result = invoke("serve")
    assert result.exit_code == 1
    assert "there is no site yet" in result.stderr
    (root / "_build" / "html").mkdir(parents=True)
    (root / "_build" / "html" / "index.html").write_text("<html></html>")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        result = invoke("serve", "--port", port)
    assert result.exit_code == 1
    assert f"port {port} cannot be used" in result.stderr


def test_serving_says_where_until_it_is_interrupted(root, monkeypatch):
    def interrupted(server):
        raise KeyboardInterrupt

    (root / "_build" / "html").mkdir(parents=True)
    (root / "_build" / "html" / "index.html").write_text("<html></html>")
    monkeypatch.setattr(http.server.ThreadingHTTPServer, "serve_forever", interrupted)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = invoke("serve", "--port", str(port))
    assert result.exit_code == 0, result.output
    assert f"at http://127.0.0.1:{port}/ (Ctrl-C stops)\nstopped\n" in result.stdout
    socket.create_server(("127.0.0.1", port)).close()  # it is free again


@pytest.fixture
def counted(root, monkeypatch):
    """Chapters are executed by nobody; returns what was asked for."""
    asked = []

    def execute(root, notebook, *, parameters=None, force=False, timeout=None, report=print):
        asked.append((notebook, parameters, force, timeout))
        executed = cache.executed_path(root, notebook)
        write(executed, nbformat.read(root / notebook, as_version=4))
        return runner.Outcome(notebook, executed, False, 1.0)

    monkeypatch.setattr(runner, "execute", execute)
    return asked


def test_chapters_that_failed_are_counted_and_named_and_the_others_run(counted, root, monkeypatch):
    execute = runner.execute

    def fail(root, notebook, **options):
        if notebook == FIRST:
            raise runner.ChapterError(notebook, "cell 3 of 3 failed")
        return execute(root, notebook, **options)

    monkeypatch.setattr(runner, "execute", fail)
    result = invoke("execute", "--jobs", "1")
    assert result.exit_code == 1
    assert f"{FIRST}: cell 3 of 3 failed" in result.stdout
    assert result.stderr == f"Error: 1 of 2 chapters failed: {FIRST}\n"
    assert [notebook for notebook, *_ in counted] == [SECOND]


def test_parameters_reach_the_one_chapter_that_is_named(counted):
    result = invoke("execute", FIRST.stem, "-p", "seed", "3", "-p", "name", "x", "--timeout", "9")
    assert result.exit_code == 0, result.output
    assert counted == [(FIRST, {"seed": 3, "name": "x"}, False, 9.0)]


def test_building_executes_renders_and_prints_the_scorecard(counted, root, monkeypatch):
    monkeypatch.setattr(site, "build", lambda *_, **__: root / "_build/html/index.html")
    result = invoke("build", "--force", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert [(notebook, force) for notebook, _, force, _ in counted] == [
        (FIRST, True),
        (SECOND, True),
    ]
    assert f"Open {root / '_build/html/index.html'}" in result.output


def test_refreshing_says_what_changed(counted, root):
    result = invoke("refresh", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert f"{FIRST}: already up to date" in result.output


def test_one_build_at_a_time(counted, root):
    with exclusive(root / "_build"):
        result = invoke("html")
    assert result.exit_code == 1
    assert "another process is writing into" in result.stderr
    assert counted == []


def test_an_interrupt_ends_without_a_traceback(counted, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "execute", interrupted)
    result = invoke("execute", "--jobs", "1")
    assert result.exit_code == 1
    assert "interrupted; chapters that were done stay cached" in result.stderr


def test_the_gallery_is_drawn_from_the_shipped_results(root):
    result = invoke("gallery", "mnist")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) >= 2
    for line in lines:
        path = root / line.split(":")[0]
        assert path.stat().st_size > 1000
