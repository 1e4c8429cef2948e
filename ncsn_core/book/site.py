"""Build the site: collect its sources in `_build/source/`, render them to `_build/html/`.

The sources are copied rather than rendered in place, so that the same pages can show either the
outputs stored in `notebooks/` or those just executed, and so that what the records of an execution
know (measured values, commit, device) can be written into the pages.
"""

import html
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode

from ncsn_core.book import cache, claims, colab, inserts, scorecard
from ncsn_core.book.ledger import Claim, load_ledger
from ncsn_core.book.notebook import is_executed, read, to_bytes
from ncsn_core.book.polish import polish
from ncsn_core.book.tree import BUILD, CONFIG, TOC, BookError, chapters, pages

JUPYTER_BOOK = (
    "from sphinx.util.console import nocolor; nocolor(); "
    "from jupyter_book.cli.main import main; main()"
)
STRICT = ["--warningiserror", "--nitpick", "--keep-going"]


def build(root: Path, *, executed: bool = False, strict: bool = False) -> Path:
    """Render the book and return the page to open.

    Shows the outputs stored in the sources, or with `executed` those of the last execution.
    Renders only pages that have changed, unless a page was removed; `strict` renders every page
    anew and fails on any warning, a reference that leads nowhere included.

    Raises `BookError` with jupyter-book's own words when it fails; its whole log is in
    `_build/site.log`.
    """
    removed = stage(root, executed=executed)
    build_folder = root / BUILD
    if strict or any(path.suffix in (".ipynb", ".md") for path in removed):
        for name in ("html", ".doctrees", "jupyter_execute"):
            shutil.rmtree(build_folder / name, ignore_errors=True)
    arguments = [str(build_folder / "source"), "--path-output", str(root)]
    result = subprocess.run(
        [sys.executable, "-c", JUPYTER_BOOK, "build", *arguments, *(STRICT if strict else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    log = result.stdout.replace(f"{build_folder / 'source'}{os.sep}", "")
    (build_folder / "site.log").write_text(log, encoding="utf-8")
    polish(build_folder / "html")
    index = build_folder / "html" / "index.html"
    if result.returncode != 0 or not index.is_file():
        why = "has a warning or an error" if strict else "could not be built"
        raise BookError(f"the site {why}; jupyter-book says:\n{_complaints(log)}")
    return index


def _complaints(log: str) -> str:
    """Return the lines of a log that say what is wrong, or its end where none does."""
    lines = log.splitlines()
    wrong = [line for line in lines if "WARNING" in line or "ERROR" in line or "rror:" in line]
    return "\n".join(f"  {line}" for line in wrong or lines[-15:])


# --- collecting the sources ---------------------------------------------------------------------


def stage(root: Path, *, executed: bool = False) -> list[Path]:
    """Bring `_build/source/` up to date; return the files removed from it, relative to it.

    A file whose content has not changed keeps its time stamp, so that its page is not rendered
    again. Raises `BookError` for a chapter that has not been executed though `executed` asks for
    its outputs.
    """
    destination = root / BUILD / "source"
    wanted = _sources(root, executed)
    for path, content in wanted.items():
        target = destination / path
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    present = [path for path in destination.rglob("*") if path.is_file()]
    removed = [path for path in present if path.relative_to(destination) not in wanted]
    for path in removed:
        path.unlink()
    return [path.relative_to(destination) for path in removed]


def _sources(root: Path, executed: bool) -> dict[Path, bytes]:
    """Return the content of every file of the site's sources, by its path."""
    files = [path for path in (root / "book").rglob("*") if path.is_file()]
    plain = [Path(TOC), Path(CONFIG), *(path.relative_to(root) for path in files)]
    sources = {path: (root / path).read_bytes() for path in plain if (root / path).is_file()}
    run_here = chapters(root)
    paths = {
        page: cache.executed_path(root, page) if executed and page in run_here else root / page
        for page in pages(root)
    }
    for page, path in paths.items():
        if not path.is_file():
            raise BookError(f"{page} has not been executed: run `ncsn book execute {page.stem}`")
    notebooks = {page: read(path) for page, path in paths.items() if page.suffix == ".ipynb"}
    config = yaml.safe_load(sources[Path(CONFIG)])
    repository = colab.address(config)
    sources[Path(CONFIG)] = yaml.safe_dump(colab.configure(config), allow_unicode=True).encode()
    ledger = load_ledger()
    book = inserts.Book(
        scorecard.rows(
            ledger,
            claims.collect([paths[page] for page in run_here], ledger),
            {page.stem for page in run_here if is_executed(notebooks[page])},
        ),
        {page: notebooks[page] for page in run_here},
    )
    for page, path in paths.items():
        if page in notebooks:
            published = publish(notebooks[page], ledger)
            for cell in published.cells:
                if cell.cell_type == "markdown":
                    prose = inserts.fill(cell.source, book, page)
                    cell.source = inserts.name_exercises(prose, page)
            if repository and page in run_here:
                wheel = colab.wheel_address(repository, metadata.version("ncsn-core"))
                published = colab.stamp(published, wheel)
            sources[page] = to_bytes(published)
        else:
            text = path.read_text(encoding="utf-8")
            sources[page] = inserts.fill(text, book, page).encode()
    return sources


def publish(notebook: NotebookNode, ledger: Mapping[int, Claim]) -> NotebookNode:
    """Return the notebook as its page shows it: verdicts that links lead to, and a last line."""
    published: NotebookNode = nbformat.from_dict(notebook)
    anchors: set[str] = set()
    for cell in published.cells:
        for output in cell.get("outputs", []):
            record = output.get("metadata", {}).get(claims.METADATA_KEY, {})
            verdict = claims.from_metadata(record, ledger)
            if verdict is not None:
                anchor = inserts.anchor(verdict.claim, verdict.part)
                new = anchor not in anchors  # a number that is reported twice has one anchor
                anchors.add(anchor)
                text = _verdict_html(verdict, anchor if new else None)
                output.data = {"text/html": text}
    footer = _footer(published.metadata.get(claims.METADATA_KEY, {}))
    if footer:
        cell = nbformat.v4.new_markdown_cell(footer)
        cell.id = "ncsn-provenance"
        published.cells.append(cell)
    return published


def _verdict_html(verdict: claims.Verdict, anchor: str | None) -> str:
    """Return the verdict's line as a paragraph that a link can lead to."""
    opening, finding = str(verdict).split(": ", maxsplit=1)
    name = "" if anchor is None else f' id="{anchor}"'
    return (
        f'<p{name} class="ncsn-claim {verdict.outcome}">'
        f"<strong>{html.escape(opening)}:</strong> {html.escape(finding)}</p>"
    )


def _footer(record: Mapping[str, Any]) -> str:
    """Return the line that says how the outputs of a page were made, or "" if nobody knows."""
    if not record:
        return ""
    known = {
        "commit": record.get("commit"),
        "profile": record.get("parameters", {}).get("profile"),
        "device": record.get("device"),
        "threads": record.get("threads"),
        "time": None if record.get("seconds") is None else f"{record['seconds']:.0f} s",
        "date": None if record.get("time") is None else record["time"][:10],
    }
    facts = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
    return f":::{{div}} ncsn-provenance\nHow the outputs of this page were made: {facts}.\n:::"
