"""What a page is made from: the notebook as its page shows it, and what inserts read."""

import functools
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from ncsn_book import scorecard
from ncsn_book.execution import changed, chapters, executed_path, read, records, to_bytes
from ncsn_book.inserts import Book, anchor
from ncsn_core.book import claims
from ncsn_core.book.ledger import Claim, find_ledger, load_ledger
from ncsn_core.provenance import PACKAGE

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1)
def shown(app: Sphinx) -> dict[Path, Path]:
    """The file whose outputs each chapter shows, by the chapter's path in the tree.

    It is the stored notebook, or where the build asks for it, its executed copy, unless something
    has changed since: then a warning says what.
    """
    root = Path(app.srcdir)
    files = {page: root / page for page in chapters(root)}
    for page in files if app.config.ncsn_executed else ():
        if why := changed(root, page):
            message = "has not been executed (%s): run `make execute ARGS=%s`"
            logger.warning(message, why, page.stem, location=page.with_suffix("").as_posix())
        else:
            files[page] = executed_path(root, page)
    return files


@functools.lru_cache(maxsize=1)
def load(app: Sphinx) -> Book:
    """What is known about the book when its pages are written."""
    notebooks = {page: read(path) for page, path in shown(app).items()}
    return Book(scorecard.of(notebooks, load_ledger()), notebooks)


@functools.lru_cache(maxsize=1)
def ingredients(app: Sphinx) -> set[str]:
    """The files from which inserts are made: chapters, ledger, records and this extension."""
    files = {path for page in shown(app) for path in _copies(app, page)}
    return {str(path) for path in (*files, *PACKAGE.rglob("manifest.json"), *_common())}


def _copies(app: Sphinx, page: Path) -> list[Path]:
    """A chapter's notebook, and where its executed copy lies or may soon, if the build asks."""
    root = Path(app.srcdir)
    return [root / page, *([executed_path(root, page)] if app.config.ncsn_executed else [])]


def _common() -> list[Path]:
    return [find_ledger(), *Path(__file__).parent.glob("*.py")]


def outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> set[str]:
    """Return every page where one was added or removed: each shows the table of contents."""
    for name in removed:
        (Path(app.outdir) / f"{name}.html").unlink(missing_ok=True)
    return env.found_docs - added if added or removed else set()


def read_source(app: Sphinx, name: str, content: list[str]) -> None:
    """Put what its page shows in place of a notebook."""
    page = Path(app.env.doc2path(name, base=False))
    if page.suffix != ".ipynb":
        return
    path = Path(app.srcdir) / page
    if page in shown(app):
        path = shown(app)[page]
        for one in _copies(app, page):
            app.env.note_dependency(str(one))
    for one in _common():
        app.env.note_dependency(str(one))
    content[0] = to_bytes(publish(read(path), load_ledger())).decode()


@functools.lru_cache(maxsize=1)
def cards(app: Sphinx) -> dict[str, str]:
    """What the front page's card says of each chapter, by its page."""
    front = (Path(app.srcdir) / "book/intro.md").read_text(encoding="utf-8")
    found = re.findall(
        r":link: \.\./(notebooks/\S+)\n.*?\{thumbnail\}.*?\n\n(.*?)\n:::", front, re.S
    )
    return {page: " ".join(words.split()) for page, words in found}


def describe(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Describe a chapter by its card, for previews and search engines, not by its first words."""
    if words := cards(app).get(name):
        context["meta"] = {**(context["meta"] or {}), "og:description": words}
        context["metatags"] += f'<meta name="description" content="{html.escape(words)}" />\n'


def skip_alias(
    app: Sphinx, what: str, name: str, member: object, skip: bool, options: object
) -> bool | None:
    """Leave out the fields of named tuples, about which their class has said everything."""
    return True if str(member.__doc__).startswith("Alias for field number") else None


def publish(notebook: NotebookNode, ledger: Mapping[int, Claim]) -> NotebookNode:
    """Return the notebook as its page shows it.

    Its parameters are folded, its verdicts are paragraphs that links lead to, and a last line says
    how it was executed.
    """
    published: NotebookNode = nbformat.from_dict(notebook)
    anchors: set[str] = set()
    for cell in published.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("hide-input")
    for output, record in records(published):
        verdict = claims.from_metadata(record, ledger)
        if verdict is not None:
            name = anchor(verdict.claim, verdict.part)
            new = name not in anchors  # a number that is reported twice has one anchor
            anchors.add(name)
            output.data = {"text/html": _verdict_html(verdict, name if new else None)}
    footer = _footer(published.metadata.get(claims.METADATA_KEY, {}))
    if footer:
        cell = nbformat.v4.new_markdown_cell(footer)
        cell.id = "ncsn-provenance"
        published.cells.append(cell)
    return published


def _verdict_html(verdict: claims.Verdict, name: str | None) -> str:
    """Return the verdict's line as a paragraph that has an address and leads to its claim."""
    opening, finding = map(html.escape, verdict.line())
    anchored = "" if name is None else f' id="{name}"'
    return (
        f'<p{anchored} class="ncsn-claim {verdict.outcome}">'
        f'<strong><a href="../book/scorecard.html#claim-{verdict.claim}">{opening}</a>:</strong> '
        f"{finding}</p>"
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
