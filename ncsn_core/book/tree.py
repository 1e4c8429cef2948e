"""The source tree of the book: its root, its table of contents, its build folder.

_toc.yml  _config.yml  book/  notebooks/      sources
book/_ext/          the extension with which Sphinx renders them
_build/executed/    executed notebooks, one beside each cache key
_build/html/        the site
"""

from pathlib import Path

from ncsn_core.errors import NCSNError

TOC = "_toc.yml"
CONFIG = "_config.yml"
BUILD = "_build"


class BookError(NCSNError):
    """Something about the book that its author can put right; the message says how."""


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder at or above `start` (default: here) that holds `_toc.yml`.

    Raises `BookError` when there is none.
    """
    start = Path.cwd() if start is None else start.resolve()
    for folder in (start, *start.parents):
        if (folder / TOC).is_file():
            return folder
    raise BookError(
        f"no {TOC} in {start} or in any folder above it: run this command inside a clone of "
        "the book's repository (an installed package alone holds no chapters)"
    )


def pages(root: Path) -> list[Path]:
    """Return every page that `_toc.yml` lists, in reading order, relative to `root`.

    Raises `BookError` for a malformed table of contents or a page that is not there.
    """
    from sphinx_external_toc.parsing import MalformedError, parse_toc_yaml

    try:
        names = [str(name) for name in parse_toc_yaml(root / TOC)]
    except (MalformedError, ValueError) as error:
        raise BookError(f"{TOC} cannot be read: {error}") from error
    return [_with_suffix(root, name) for name in names]


def _with_suffix(root: Path, name: str) -> Path:
    candidates = [name, f"{name}.ipynb", f"{name}.md"]
    for candidate in candidates:
        if (root / candidate).is_file():
            return Path(candidate)
    raise BookError(
        f"{TOC} lists {name!r}, but there is neither {name}.ipynb nor {name}.md: "
        f"add the page or remove the entry"
    )


def chapters(root: Path) -> list[Path]:
    """Return the notebooks of the book that are executed, in reading order.

    Notebooks in a folder called `runs` are records of runs that took hours: they are shown, never
    executed again.
    """
    return [page for page in pages(root) if page.suffix == ".ipynb" and "runs" not in page.parts]


def select(root: Path, names: list[str]) -> list[Path]:
    """Return the chapters called `names` (`10_ncsn`, `training/train_ncsn` or a path), or all.

    Raises `BookError` that lists the chapters when a name is unknown.
    """
    known = chapters(root)
    if not names:
        return known
    selected = []
    for name in names:
        found = [chapter for chapter in known if _is_called(chapter, name)]
        if not found:
            listed = ", ".join(chapter.stem for chapter in known)
            raise BookError(f"no chapter is called {name!r}; {TOC} lists: {listed}")
        selected += found
    return list(dict.fromkeys(selected))


def _is_called(chapter: Path, name: str) -> bool:
    wanted = Path(name).with_suffix("").parts
    return chapter.with_suffix("").parts[-len(wanted) :] == wanted
