"""The commands `ncsn book ...`: execute the chapters, render the site, print the scorecard.

Every command imports what it needs, as in `ncsn_core.cli`.
"""

import ast
import functools
import http.server
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ncsn_core.provenance as provenance
from ncsn_core.book.tree import BUILD, BookError, chapters, find_root, select
from ncsn_core.errors import NCSNError

if TYPE_CHECKING:
    from ncsn_core.book.runner import Outcome
    from ncsn_core.book.scorecard import Row


class Failure(click.ClickException):
    """An error of the user's book, printed without a traceback; the exit code is 1."""

    def show(self, file: Any = None) -> None:
        """Print the message as it is: it may have several lines."""
        click.echo(f"Error: {self.message}", err=True)


def _speaks_plainly(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except NCSNError as error:
            raise Failure(str(error)) from error
        except ModuleNotFoundError as error:
            raise Failure(
                f"{error.name} is not installed; the book's tools come with the extra 'book': "
                "pip install 'ncsn-core[book]'"
            ) from error
        except KeyboardInterrupt:
            raise Failure(
                "interrupted; chapters that were done stay cached, and what the running one wrote "
                f"is in {BUILD}/executed/failed"
            ) from None

    return wrapped


def _alone(command: Callable[..., None]) -> Callable[..., None]:
    """Let one command at a time write into the build folder."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        from ncsn_core.book import cache

        with cache.alone(find_root()):
            command(*args, **options)

    return wrapped


@click.group()
def book() -> None:
    """Execute, render and check the book. Run these commands inside a clone of it.

    `ncsn book build` does everything: it executes the chapters that something has changed for,
    renders the site and prints which claims hold. The other commands are its single steps.

    Chapters are named without folder and suffix (10_ncsn); no name means all that _toc.yml lists.
    """


execution_options = [
    click.option("--force", is_flag=True, help="Execute even where nothing has changed."),
    click.option(
        "--timeout",
        type=click.FloatRange(min=1),
        metavar="SECONDS",
        help="Stop a chapter that takes longer. [default: no limit]",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=min(4, provenance.cores()),
        show_default="the cores, at most 4",
        help="Chapters at a time. The cores are divided among them: two kernels that both use "
        "every core are far slower than one after the other. Those that measure time come last, "
        "one at a time.",
    ),
]


def _with_execution_options(command: Callable[..., None]) -> Callable[..., None]:
    return functools.reduce(lambda inner, option: option(inner), execution_options, command)


@book.command()
@click.option("--strict", is_flag=True, help="Render every page anew; a warning is an error.")
@_with_execution_options
@_speaks_plainly
@_alone
def build(strict: bool, force: bool, timeout: float | None, jobs: int) -> None:
    """Execute what has changed, render the site, print the page to open and the scorecard.

    An executed chapter is kept in _build/executed/ and used again until its notebook, a module or
    a record of ncsn_core that it loaded, a claim that it checked, requirements.lock, or a
    checkpoint that it names changes.

    Exit code 1: a chapter failed, the site has an error, or a claim fails that should hold.
    """
    from ncsn_core.book import site

    root = find_root()
    _execute(root, select(root, []), force, timeout, jobs)
    index = site.build(root, executed=True, strict=strict)
    table = _scorecard_of(root, stored=False)
    click.echo(f"\n{_rendered(table)}\n\nOpen {index}")
    _fail_on_regressions(table)


@book.command()
@click.argument("names", nargs=-1, metavar="[CHAPTER]...")
@click.option(
    "--parameter",
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Set a name of the notebook's parameters cell, e.g. -p profile cpu. Repeatable.",
)
@_with_execution_options
@_speaks_plainly
@_alone
def execute(
    names: tuple[str, ...],
    parameters: tuple[tuple[str, str], ...],
    force: bool,
    timeout: float | None,
    jobs: int,
) -> None:
    """Execute chapters whose ingredients have changed; outputs go to _build/executed/.

    The notebooks themselves are not touched (`ncsn book refresh` does that). A chapter whose cell
    fails is reported with the number of the cell, what it wrote until then is kept, and the other
    chapters still run.

    \b
    Examples:
      ncsn book execute
      ncsn book execute 10_ncsn --force
      ncsn book execute training/train_ncsn -p profile cpu
    """
    from ncsn_core.book import runner

    root = find_root()
    notebooks = select(root, list(names))
    if not parameters:
        _execute(root, notebooks, force, timeout, jobs)
        return
    if not names:
        raise BookError("parameters belong to one notebook: name it before --parameter")
    given = {name: _literal(value) for name, value in parameters}
    for notebook in notebooks:
        runner.execute(
            root, notebook, parameters=given, force=force, timeout=timeout, report=click.echo
        )


def _literal(text: str) -> Any:
    """Return the number, boolean or None that `text` spells, or `text` itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _execute(
    root: Path, notebooks: list[Path], force: bool, timeout: float | None, jobs: int
) -> "list[Outcome]":
    from ncsn_core.book import runner

    done, failed = runner.execute_all(
        root, notebooks, force=force, timeout=timeout, jobs=jobs, report=click.echo
    )
    if failed:
        names = ", ".join(str(failure.notebook) for failure in failed)
        raise BookError(f"{len(failed)} of {len(notebooks)} chapters failed: {names}")
    return done


@book.command()
@click.argument("names", nargs=-1, metavar="[CHAPTER]...")
@_with_execution_options
@_speaks_plainly
@_alone
def refresh(names: tuple[str, ...], force: bool, timeout: float | None, jobs: int) -> None:
    """Execute chapters and store their outputs in notebooks/, ready to be committed.

    What differs from run to run is left out (timings, papermill's marks, the kernel's exact
    version), and a notebook whose outputs are the same is not touched, so that the difference to
    the last commit shows what changed and nothing else.
    """
    from ncsn_core.book import runner

    root = find_root()
    for outcome in _execute(root, select(root, list(names)), force, timeout, jobs):
        changed = runner.refresh(root, outcome)
        click.echo(f"{outcome.notebook}: {'outputs stored' if changed else 'already up to date'}")


@book.command()
@click.option("--strict", is_flag=True, help="Render every page anew; a warning is an error.")
@_speaks_plainly
@_alone
def html(strict: bool) -> None:
    """Render the outputs that are stored in notebooks/, without executing anything.

    The site appears in _build/html/, and jupyter-book's whole log in _build/site.log.
    """
    from ncsn_core.book import site

    click.echo(f"Open {site.build(find_root(), strict=strict)}")


@book.command(name="scorecard")
@click.option("--stored", is_flag=True, help="Read notebooks/ even where executed copies exist.")
@click.option("--complete", is_flag=True, help="Fail too if a chapter left a claim of it out.")
@_speaks_plainly
def print_scorecard(stored: bool, complete: bool) -> None:
    """Print every claim of the ledger: accepted band, measured value, verdict, chapter.

    Reads the verdicts out of executed chapters (_build/executed/), or where a chapter has not been
    executed here, out of the outputs stored in notebooks/.

    Exit code 1 when a claim fails that the ledger expects to hold.
    """
    table = _scorecard_of(find_root(), stored)
    click.echo(_rendered(table))
    _fail_on_regressions(table)
    forgotten = sorted({row.claim.id for row in table if row.forgotten})
    if complete and forgotten:
        raise BookError(f"not measured by their own chapters: {_listed(forgotten)}")


def _scorecard_of(root: Path, stored: bool) -> "list[Row]":
    from ncsn_core.book import cache, claims, scorecard
    from ncsn_core.book.ledger import load_ledger
    from ncsn_core.book.notebook import is_executed, read

    paths = []
    for notebook in chapters(root):
        executed = cache.executed_path(root, notebook)
        paths.append(executed if executed.is_file() and not stored else root / notebook)
    ledger = load_ledger()
    ran = {path.stem for path in paths if is_executed(read(path))}
    return scorecard.rows(ledger, claims.collect(paths, ledger), ran)


def _rendered(table: "list[Row]") -> str:
    from ncsn_core.book import scorecard

    return scorecard.render(table, width=shutil.get_terminal_size((110, 24)).columns)


def _fail_on_regressions(table: "list[Row]") -> None:
    failing = sorted({row.claim.id for row in table if row.regressed})
    if failing:
        raise BookError(f"claims that should hold and fail: {_listed(failing)}")


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


@book.command()
@click.argument("checkpoint", default="mnist")
@_speaks_plainly
def gallery(checkpoint: str) -> None:
    """Draw the front page's pictures from the results that ship with CHECKPOINT."""
    import ncsn_core.pretrained as pretrained
    from ncsn_core.book import site

    root = find_root()
    draw = site.extension(root, "gallery").write
    for path in draw(pretrained.load(checkpoint), root / "book" / "_static"):
        click.echo(f"{path.relative_to(root)}: {path.stat().st_size / 1024:.0f} KiB")


@book.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@_speaks_plainly
def serve(port: int) -> None:
    """Serve the rendered site on this machine until interrupted with Ctrl-C.

    The site also opens straight from its files, without a server.
    """
    folder = find_root() / BUILD / "html"
    if not (folder / "index.html").is_file():
        raise BookError("there is no site yet: run `ncsn book build` or `ncsn book html` first")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise BookError(f"port {port} cannot be used ({error.strerror}): try --port") from error
    click.echo(f"Serving {folder} at http://127.0.0.1:{port}/ (Ctrl-C stops)")
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("stopped")
