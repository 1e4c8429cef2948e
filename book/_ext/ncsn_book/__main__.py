"""What `make` calls in a clone: execute the chapters, store their outputs, print the scorecard."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import ncsn_core.provenance as provenance
from ncsn_book import execution, scorecard
from ncsn_book.execution import BookError, chapters, executed_path, read
from ncsn_core.book.ledger import load_ledger
from ncsn_core.errors import NCSNError


class Group(click.Group):
    """Commands whose errors are a sentence, as those of `ncsn`."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(context)
        except NCSNError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Group)
def main() -> None:
    """Execute the book's chapters. A CHAPTER is 10_ncsn or training/train_ncsn; none means all."""


def _executes(command: Callable[..., None]) -> Callable[..., None]:
    cores = min(4, provenance.cores())
    for option in (
        click.argument("names", nargs=-1, metavar="[CHAPTER]..."),
        click.option("--force", is_flag=True, help="Even where nothing has changed."),
        click.option("--timeout", type=click.FloatRange(1), help="Seconds for a chapter."),
        click.option("--jobs", type=click.IntRange(1), default=cores, help="Chapters at a time."),
    ):
        command = option(command)
    return command


@main.command()
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="Repeatable.")
@_executes
def execute(parameters: tuple[tuple[str, str], ...], names: tuple[str, ...], **how: Any) -> None:
    """Execute what has changed; the outputs go to _build/executed.

    -p sets a name of the parameters cell of one chapter, as in -p profile cpu.
    """
    root, given = Path.cwd(), {name: _literal(value) for name, value in parameters}
    if given and len(names) != 1:
        raise BookError("parameters belong to one chapter: name it")
    with execution.alone(root):
        if given:
            del how["jobs"]
            (page,) = chapters(root, names)
            _judge([execution.execute(root, page, parameters=given, **how)])
        else:
            _judge(execution.execute_all(root, chapters(root, names), **how))


@main.command()
@_executes
def refresh(names: tuple[str, ...], **how: Any) -> None:
    """Execute what has changed, and store the outputs in notebooks/."""
    root = Path.cwd()
    with execution.alone(root):
        pages = chapters(root, names)
        _judge(execution.execute_all(root, pages, **how))
        for page in pages:
            stored = execution.refresh(root, page)
            click.echo(f"{page}: {'outputs stored' if stored else 'already up to date'}")


@main.command(name="scorecard")
@click.option("--complete", is_flag=True, help="Fail if a chapter left a claim of it out, too.")
def print_scorecard(complete: bool) -> None:
    """Count the claims and name those that do not hold; fail where one should."""
    root = Path.cwd()
    copies = {page: executed_path(root, page) for page in chapters(root)}
    files = {page: copy if copy.is_file() else root / page for page, copy in copies.items()}
    table = scorecard.of({page: read(path) for page, path in files.items()}, load_ledger())
    click.echo(scorecard.summary(table))
    wrong = {row.claim.id for row in table if row.regressed or (complete and row.forgotten)}
    if wrong:
        raise BookError(f"claims that should hold and do not: {', '.join(map(str, sorted(wrong)))}")


@main.command(name="gallery")
def draw_gallery() -> None:
    """Draw the README's picture from the results that ship."""
    from ncsn_book import gallery

    click.echo(gallery.write(Path("book") / "_static"))


def _judge(outcomes: list[execution.Outcome]) -> None:
    failed = [str(outcome.page) for outcome in outcomes if outcome.failure]
    if failed:
        raise BookError(f"{len(failed)} of {len(outcomes)} chapters failed: {', '.join(failed)}")


def _literal(text: str) -> Any:
    """The number, boolean or None that `text` spells, or `text` itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main(prog_name="python -m ncsn_book")
