"""Corrections to the pages that Sphinx and its theme have written.

What they get wrong for a screen reader, or send for nothing, is put right in the HTML itself: there
is no setting for it.  Each correction leaves a page that has it already as it is.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

CORRECTIONS = [
    # The arrows in the sidebar that open a chapter's sections have no name.
    (re.compile(r"<summary>(?=<span class=\"toctree-toggle\")"), '<summary aria-label="Sections">'),
    # The bibliography calls itself a list and has no items.
    (re.compile(r'<div role="list" class="citation-list">'), '<div class="citation-list">'),
    # MathJax lets a line begin with the comma after a formula.
    (
        re.compile(r'(?<!together">)(<span class="math[^"]*">\\\([^<]*\\\)</span>[,.;:?!)\]’”]+)'),
        r'<span class="ncsn-together">\1</span>',
    ),
    # The front page has the name of the book.
    (re.compile(r"(?i)<title>(Following the score) &#8212; \1</title>"), r"<title>\1</title>"),
    # 1.5 MB that draw icons which the style sheet's font draws as well.
    (re.compile(r'<script defer src="[^"]*scripts/fontawesome\.js[^"]*"></script>\n?'), ""),
]

TABLE = re.compile(r"<table(?![^>]*genindex)[^>]*>.*?</table>", re.DOTALL)


def correct(app: Sphinx, error: Exception | None) -> None:
    """Correct the site that was built."""
    if app.builder.format == "html" and error is None:
        polish(Path(app.outdir))


def polish(folder: Path) -> None:
    """Correct every page in the folder of a rendered site."""
    for path in folder.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        corrected = text
        for pattern, replacement in CORRECTIONS:
            corrected = pattern.sub(replacement, corrected)
        corrected = TABLE.sub(_with_heads, corrected)
        if corrected != text:
            path.write_text(corrected, encoding="utf-8")


def _with_heads(table: re.Match[str]) -> str:
    """A table whose cells hold the head of their column: on a phone each row is a card."""
    heads = re.findall(r"<th\b[^>]*>(.*?)</th>", table[0], re.DOTALL)
    rows = re.split(r"(?=<tr\b)", table[0])
    if len(heads) < 3 or "data-cards" in table[0]:
        return table[0]
    for head in heads:  # each turn finds the next cell of every row
        text = re.sub(r' id="[^"]*"', "", re.sub(r"</?p>", "", head))
        name = f'<span class="ncsn-head" aria-hidden="true">{text}</span>' if text.strip() else ""
        cell = re.compile(r"<td(?! data-cell)\b([^>]*)>")
        rows = [cell.sub(rf"<td data-cell\1>{_literal(name)}", row, count=1) for row in rows]
    return "".join(rows).replace("<table", "<table data-cards", 1)


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")
