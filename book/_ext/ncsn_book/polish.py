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
    # 1.5 MB that draw icons which the style sheet's font draws as well.
    (re.compile(r'<script defer src="[^"]*scripts/fontawesome\.js[^"]*"></script>\n?'), ""),
]


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
        if corrected != text:
            path.write_text(corrected, encoding="utf-8")
