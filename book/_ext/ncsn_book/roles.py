"""The roles and the directive with which a page asks for what the build knows.

Both make MyST text, which is then parsed where it stands.  What does not exist is an error of the
build that names page and line, and stays one in the next build, until the page is right.
"""

from collections.abc import Callable
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst.states import Struct
from docutils.statemachine import StringList
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from ncsn_book import pages
from ncsn_book.execution import BookError
from ncsn_book.inserts import BLOCKS, Book

logger = logging.getLogger(__name__)


class Insert(SphinxRole):
    """A role that becomes what `make` says of its text."""

    def __init__(self, make: Callable[[str, Book], str]) -> None:
        self.make = make

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the nodes of the text."""
        try:
            text = self.make(self.text, _book(self.env))
        except BookError as error:
            line = _line(self.env, self.lineno, f"{{{self.name}}}`{self.text}`")
            return [_report(self.env, line, error, self.rawtext)], []
        return self.inliner.parse(text, self.lineno, Struct(), nodes.inline())


class Block(SphinxDirective):
    """A directive that becomes a generated part of a page, called by its name in `BLOCKS`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Put the block where it stands, so that its headings open sections of the page."""
        (name,) = self.arguments
        try:
            if name not in BLOCKS:
                raise BookError(f"no block is called {name!r}: {', '.join(BLOCKS)}")
            text = BLOCKS[name](_book(self.env))
        except BookError as error:
            return [nodes.paragraph("", "", _report(self.env, self.lineno, error, name))]
        page = self.state_machine.node
        begin = len(page)
        self.state.nested_parse(StringList(text.splitlines()), 0, page, match_titles=True)
        for node in (node for child in page[begin:] for node in child.findall()):
            node.line = self.lineno  # what is wrong in the block is wrong here
        return []


def _book(env: BuildEnvironment) -> Book:
    """What is known about the book; the page that asks depends on all of it."""
    for path in pages.ingredients(env.app):
        env.note_dependency(path)
    return pages.load(env.app)


def _report(env: BuildEnvironment, line: int, error: BookError, text: str) -> nodes.problematic:
    logger.error(str(error), location=(env.docname, line))
    env.note_reread()
    return nodes.problematic(text, text)


def _line(env: BuildEnvironment, first: int, role: str) -> int:
    """The line of a role on a page, of which MyST says where its paragraph begins."""
    page = Path(env.doc2path(env.docname))
    lines = page.read_text(encoding="utf-8").splitlines() if page.suffix == ".md" else []
    found = (n for n, line in enumerate(lines[first - 1 :], start=first) if role in line)
    return next(found, first)
