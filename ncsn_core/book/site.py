"""Render the site to `_build/html/`: jupyter-book, and what it says when it fails.

What the pages need beyond Sphinx is the extension `book/_ext/ncsn_book` of the repository.
"""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from ncsn_core.book.tree import BUILD, BookError

JUPYTER_BOOK = (
    "from sphinx.util.console import nocolor; nocolor(); "
    "from jupyter_book.cli.main import main; main()"
)
STRICT = ["--warningiserror", "--nitpick", "--keep-going"]


def build(root: Path, *, executed: bool = False, strict: bool = False) -> Path:
    """Render the book and return the page to open.

    Shows the outputs stored in the sources, or with `executed` those of the last execution.
    Renders only pages that have changed; `strict` renders every page anew and fails on any warning,
    a reference that leads nowhere included.

    Raises `BookError` with jupyter-book's own words when it fails or reports an error; its whole
    log is in `_build/site.log`.
    """
    build_folder = root / BUILD
    for name in ("html", ".doctrees", "jupyter_execute") if strict else ():
        shutil.rmtree(build_folder / name, ignore_errors=True)
    result = subprocess.run(
        [sys.executable, "-c", JUPYTER_BOOK, "build", str(root), *(STRICT if strict else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "NCSN_EXECUTED": "1" if executed else ""},
    )
    log = result.stdout.replace(f"{root}{os.sep}", "")
    build_folder.mkdir(exist_ok=True)
    (build_folder / "site.log").write_text(log, encoding="utf-8")
    index = build_folder / "html" / "index.html"
    if result.returncode != 0 or not index.is_file() or ": ERROR: " in log:
        why = "has a warning or an error" if strict else "could not be built"
        raise BookError(f"the site {why}; jupyter-book says:\n{_complaints(log)}")
    return index


def _complaints(log: str) -> str:
    """Return the lines of a log that say what is wrong, or its end where none does."""
    lines = log.splitlines()
    wrong = [line for line in lines if "WARNING" in line or "ERROR" in line or "rror:" in line]
    return "\n".join(f"  {line}" for line in wrong or lines[-15:])


def extension(root: Path, module: str) -> ModuleType:
    """Return a module of the book's own extension, which a clone has and a wheel has not."""
    folder = root / "book" / "_ext"
    if not (folder / "ncsn_book").is_dir():
        raise BookError(f"no {folder / 'ncsn_book'}: run this command inside a clone of the book")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(f"ncsn_book.{module}")
