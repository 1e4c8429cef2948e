"""Execute chapters with papermill: only those that something has changed for.

    _build/executed/notebooks/X.ipynb         the executed copy, as `make refresh` stores it
    _build/executed/notebooks/X.made.json     what it was made from, by its SHA-256
    _build/executed/failed/notebooks/X.ipynb  how far a chapter came that failed

A copy is made anew when the cells of its notebook change, the parameters or what lies in a folder
that one of them names, requirements.lock, the version of Python, a file of the package that its
kernel has loaded, or the line of a claim that it has checked.
"""

import ast
import dataclasses
import functools
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from sphinx_external_toc.parsing import parse_toc_yaml

import ncsn_core.provenance as provenance
from ncsn_core.book.claims import METADATA_KEY, from_metadata
from ncsn_core.book.ledger import load_ledger, measurement_name
from ncsn_core.errors import NCSNError
from ncsn_core.files import exclusive, write_atomically

EXECUTED = Path("_build/executed")
PROBE_TAG, TIME_TAG = "ncsn-provenance", "measures-time"
PROBE = (
    "from IPython.display import display\n"
    "from ncsn_core import provenance\n"
    "report = {'ncsn': provenance.record(), 'files': provenance.loaded()}\n"
    "report['ncsn']['reference_seconds'] = round(provenance.reference_seconds(), 3)\n"
    "display({'text/plain': ''}, raw=True, metadata=report)"
)
"""A last cell, removed again, that asks the kernel where it computed, and what it has loaded."""

WATCH = "__import__('ncsn_core.provenance', fromlist=['watch']).watch()"
"""Before the first cell: a line of no cell, which leaves no name behind."""

KERNEL_ENVIRONMENT = {
    "TQDM_DISABLE": "1",  # a progress bar in a stored output differs on every machine
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a note of the debugger that concerns nobody here
}
WHEN_AND_WHERE = ("commit", "device", "threads", "time", "measured")

Report = Callable[[str], None]


class BookError(NCSNError):
    """Something about the book that its author can put right; the message says how."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the execution of a chapter ended: `failure` says what was wrong, or is empty."""

    page: Path
    cached: bool = False
    failure: str = ""


# --- chapters -----------------------------------------------------------------------------------


def chapters(root: Path, names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of `_toc.yml` that are executed, in reading order, relative to `root`.

    Those in a folder called `runs` are records of runs that took hours, and are only shown.

    Args:
        root: the folder of `_toc.yml`.
        names: `10_ncsn`, `training/train_ncsn` or a path; all where there are none.

    Raises:
        BookError: where no chapter is called so.
    """
    if not (root / "_toc.yml").is_file():
        raise BookError(f"no _toc.yml in {root}: run this in the root of a clone of the book")
    listed = [Path(f"{name}.ipynb") for name in map(str, parse_toc_yaml(root / "_toc.yml"))]
    known = [page for page in listed if (root / page).is_file() and "runs" not in page.parts]
    for name in names:
        if not any(_is_called(page, name) for page in known):
            stems = ", ".join(page.stem for page in known)
            raise BookError(f"no chapter is called {name!r}; there are {stems}")
    return [page for page in known if not names or any(_is_called(page, name) for name in names)]


def _is_called(page: Path, name: str) -> bool:
    wanted = Path(name).with_suffix("").parts
    return page.with_suffix("").parts[-len(wanted) :] == wanted


def read(path: Path) -> NotebookNode:
    """The notebook at `path`, every cell with an id of its own.

    A cell that comes without one, as Colab saves them, gets the same at every reading.

    Raises:
        BookError: when it is none.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["nbformat"] == 4:
            seen: set[str] = set()
            for position, cell in enumerate(raw["cells"]):
                if "id" not in cell or cell["id"] in seen or raw["nbformat_minor"] < 5:
                    content = [position, cell["cell_type"], "".join(cell["source"])]
                    cell["id"] = _sha256(json.dumps(content))[:8]
                seen.add(cell["id"])
            raw["nbformat_minor"] = max(raw["nbformat_minor"], 5)
        notebook: NotebookNode = nbformat.reads(json.dumps(raw), as_version=4)
        return notebook
    except (ValueError, TypeError, KeyError, nbformat.ValidationError) as error:
        raise BookError(f"{path} is not a notebook, or a damaged one: {error}") from error


def to_bytes(notebook: NotebookNode) -> bytes:
    """The notebook as the bytes of an `.ipynb` file."""
    return f"{nbformat.writes(notebook)}\n".encode()


def records(notebook: NotebookNode) -> Iterator[tuple[NotebookNode, dict[str, Any]]]:
    """Every output of a notebook, with what `ncsn_core` has recorded in its metadata."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield output, output.get("metadata", {}).get(METADATA_KEY, {})


def is_tagged(notebook: NotebookNode, tag: str) -> bool:
    """Whether any cell has the tag."""
    return any(tag in cell.metadata.get("tags", []) for cell in notebook.cells)


def executed_path(root: Path, page: Path) -> Path:
    """Where the executed copy of a chapter lies, whether or not it exists."""
    return root / EXECUTED / page


def failed_path(root: Path, page: Path) -> Path:
    """Where the partial output of a chapter that failed is kept."""
    return root / EXECUTED / "failed" / page


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Be the only process that executes chapters, until the block ends.

    Raises:
        NCSNError: at once, when another process does.
    """
    folders = (path for path in (root / EXECUTED).rglob("*") if path.is_dir())
    with exclusive(root / EXECUTED, folders):
        yield


# --- what has changed ---------------------------------------------------------------------------


def changed(root: Path, page: Path, parameters: Mapping[str, Any] | None = None) -> str:
    """Why a chapter has to be executed, in a few words; empty when its copy is still good."""
    try:
        then = json.loads(_made_path(root, page).read_text(encoding="utf-8"))
        now = made_from(root, page, parameters or {}, then)
        names = [name for name in now if now[name] != then.get(name)]
        names += _changed_claims(read(executed_path(root, page)))
    except (OSError, ValueError, AttributeError, BookError):
        return "no executed copy yet"
    return f"changed: {', '.join(names)}" if names else ""


def made_from(
    root: Path, page: Path, parameters: Mapping[str, Any], files: Iterable[str]
) -> dict[str, str]:
    """The SHA-256 of everything that a copy is made from, by its name.

    Args:
        root: the folder of `_toc.yml`.
        page: a chapter, relative to it.
        parameters: those that are not the notebook's own.
        files: what its kernel has loaded, from the package's name on; others are skipped.
    """
    source = read(root / page)
    cells = [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in source.cells]
    given = {**defaults(root / page), **parameters}
    named = [(root / page).parent / value for value in given.values() if isinstance(value, str)]
    inside = [file for folder in named if folder.is_dir() for file in sorted(folder.rglob("*"))]
    parent = provenance.PACKAGE.parent
    return {
        "notebook": _sha256(json.dumps(cells, sort_keys=True)),
        "parameters": _sha256(repr([sorted(parameters.items()), [*map(_digest, inside)]])),
        "requirements.lock": _digest(root / "requirements.lock"),
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{name: _digest(parent / name) for name in files if "/" in name},
    }


def defaults(path: Path) -> dict[str, Any]:
    """What the cell tagged `parameters` assigns, by name; None where that is no literal."""
    import papermill

    found = {}
    for name, parameter in papermill.inspect_notebook(path).items():
        try:
            found[name] = ast.literal_eval(parameter["default"])
        except (ValueError, SyntaxError):
            found[name] = None
    return found


def _changed_claims(executed: NotebookNode) -> Iterator[str]:
    """The claims to whose checks the ledger of today gives another line."""
    for output, record in records(executed):
        if "claim" in record:
            line = str(from_metadata(record, load_ledger()))
            if line != output.data["text/plain"]:
                yield f"claim {measurement_name(record['claim'], record['part'])}"


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the list of a folder: a new record changes what lists them."""
    if path.is_dir():
        return _sha256("\0".join(sorted(p.name for p in path.iterdir() if p.name[0] not in "._")))
    return _of_version(path, path.stat().st_mtime_ns) if path.is_file() else ""


@functools.cache
def _of_version(path: Path, modified: int) -> str:
    """Read each file once: one chapter after the other asks for the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _made_path(root: Path, page: Path) -> Path:
    return executed_path(root, page).with_suffix(".made.json")


# --- executing ----------------------------------------------------------------------------------


def execute(
    root: Path,
    page: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
    timeout: float | None = None,
    report: Report = print,
) -> Outcome:
    """Execute a chapter in its own folder, unless its copy is still good.

    Where it fails, what it wrote until then is kept at `failed_path`, and the copy stays as it was.

    Args:
        root: the folder of `_toc.yml`.
        page: the chapter, relative to it.
        parameters: values for names of its cell tagged `parameters`.
        force: execute even where nothing has changed.
        timeout: of the whole chapter, in seconds.
        report: receives a line at the beginning and one at the end.

    Raises:
        BookError: for a parameter that the notebook does not have.
    """
    source = read(root / page)
    given, known = dict(parameters or {}), defaults(root / page)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise BookError(
            f"{page} has no parameter {', '.join(unknown)}; its parameters are: "
            f"{', '.join(known) or 'none (no cell is tagged parameters)'}"
        )
    why = changed(root, page, given) or ("forced" if force else "")
    if not why:
        report(f"{page}: unchanged")
        return Outcome(page, cached=True)
    report(f"{page}: executing ({why})")
    began = time.time()
    finished, failure = _run(root, page, source, given, timeout)
    if finished is None:
        report(f"{page}: {failure}")
        return Outcome(page, failure=failure)
    seconds = time.time() - began
    probed = finished.cells[-1].outputs[-1].metadata
    clean = without_traces(finished)
    record = {"seconds": round(seconds, 1), "parameters": {**known, **given}}
    clean.metadata[METADATA_KEY] = {**probed[METADATA_KEY], **record}
    made = made_from(root, page, given, probed["files"])
    edited = [n for n in made if "/" in n and _modified(provenance.PACKAGE.parent / n) > began]
    made |= dict.fromkeys(edited, "edited while it ran")
    write_atomically(executed_path(root, page), to_bytes(clean))
    write_atomically(_made_path(root, page), json.dumps(made, indent=1).encode())
    failed_path(root, page).unlink(missing_ok=True)
    report(f"{page}: executed in {seconds:.0f} s")
    return Outcome(page)


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0


def _run(
    root: Path,
    page: Path,
    source: NotebookNode,
    parameters: dict[str, Any],
    timeout: float | None,
) -> tuple[NotebookNode | None, str]:
    """The executed notebook with its probe, or None and what was wrong."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    working, folder = failed_path(root, page), (root / page).parent
    probe = nbformat.v4.new_code_cell(PROBE, metadata={"tags": [PROBE_TAG]})
    write_atomically(
        working, to_bytes(nbformat.from_dict({**source, "cells": [*source.cells, probe]}))
    )
    os.environ |= {**KERNEL_ENVIRONMENT, provenance.NOTEBOOK: str(root / page)}
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    end = None if timeout is None else time.monotonic() + timeout
    try:
        papermill.execute_notebook(
            working,
            working,
            parameters=parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            extra_arguments=["--log-level=ERROR", f"--IPKernelApp.exec_lines={WATCH}"],
            shutdown_kernel="immediate",
            resources={"metadata": {"path": str(folder)}},
            timeout_func=end and (lambda cell: max(1, round(end - time.monotonic()))),
        )
        return read(working), ""
    except papermill.PapermillExecutionError as error:
        what = f"{error.ename}: {error.evalue}"
    except CellTimeoutError:
        what = f"it was still running when the chapter's {timeout:g} s were over"
    except DeadKernelError:
        what = "the kernel died (a common reason: memory ran out)"
    place = _reached(source, read(working))
    return None, f"{place}\n  {what}\n  outputs up to there: {working.relative_to(root)}"


def _reached(source: NotebookNode, partial: NotebookNode) -> str:
    """The last cell that papermill started, by its number in the source and its first line."""
    ids = [cell.id for cell in source.cells]
    started = [c for c in partial.cells if c.metadata.get("papermill", {}).get("start_time")]
    cell = next((cell for cell in reversed(started) if cell.id in ids), None)
    if cell is None:
        return "the kernel did not start"
    line = next((line for line in cell.source.splitlines() if line.strip()), "").strip()
    return f"cell {ids.index(cell.id) + 1} of {len(ids)}, which begins with\n    {line}\n  failed"


def without_traces(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what an execution leaves behind besides its outputs.

    The probe, papermill's marks and timings, widget state and the exact Python version go, so that
    executing twice gives the same file.
    """
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        dropped = {"papermill", "execution"} | (set() if tags else {"tags"})
        if PROBE_TAG not in tags:
            kept = {name: cell.metadata[name] for name in cell.metadata if name not in dropped}
            cells.append({**cell, "metadata": kept})
    metadata = {k: v for k, v in notebook.metadata.items() if k not in ("papermill", "widgets")}
    metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata["language_info"] = {"name": "python"}
    clean: NotebookNode = nbformat.from_dict({**notebook, "cells": cells, "metadata": metadata})
    return clean


def execute_all(
    root: Path,
    pages: list[Path],
    *,
    force: bool = False,
    timeout: float | None = None,
    jobs: int = 1,
    report: Report = print,
) -> list[Outcome]:
    """Execute chapters, going on after one that fails.

    With `jobs` at a time the cores are divided: two kernels that both use both cores run over ten
    times slower than one.  Chapters that measure time come last and have the machine for
    themselves.
    """
    together = [page for page in pages if jobs > 1 and not is_tagged(read(root / page), TIME_TAG)]
    together = together if len(together) > 1 else []
    alone = [page for page in pages if page not in together]
    cores = int(os.environ.get("OMP_NUM_THREADS", 0)) or provenance.cores()
    share = max(1, cores // max(1, min(jobs, len(together))))
    run = functools.partial(execute, root, force=force, timeout=timeout)
    spawn = get_context("spawn")
    outcomes = []
    if together:
        with ProcessPoolExecutor(jobs, spawn, initializer=_take, initargs=(share,)) as pool:
            outcomes = list(pool.map(run, together))
    return outcomes + [run(page, report=report) for page in alone]


def _take(threads: int) -> None:
    """Give every kernel that this process starts its share of the cores."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


# --- storing outputs back into the sources ------------------------------------------------------


def refresh(root: Path, page: Path) -> bool:
    """Store the outputs of an executed chapter in its source; whether the file changed.

    A source whose cells and outputs are the same already is left as it is, so that the difference
    in version control is what has changed and nothing else.
    """
    executed = read(executed_path(root, page))
    if _content(read(root / page)) == _content(executed):
        return False
    write_atomically(root / page, to_bytes(executed))
    return True


def _content(notebook: NotebookNode) -> list[NotebookNode]:
    """Cells and outputs, whenever, wherever and by whichever commit they were made."""
    clean = without_traces(notebook)
    for _, record in records(clean):
        for name in WHEN_AND_WHERE:
            record.pop(name, None)
    cells: list[NotebookNode] = clean.cells
    return cells
