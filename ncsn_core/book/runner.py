"""Execute the chapters with papermill: only those that something has changed for."""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

import ncsn_core.provenance as provenance
from ncsn_core.book import cache
from ncsn_core.book.claims import METADATA_KEY
from ncsn_core.book.notebook import (
    PROBE_TAG,
    default_parameters,
    measures_time,
    read,
    same_content,
    to_bytes,
    without_traces,
)
from ncsn_core.book.tree import BookError
from ncsn_core.files import temporary, write_atomically

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

MOST_BYTES = 16_000_000  # of outputs in a notebook

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A chapter and where its executed copy lies; `seconds` is how long its execution took."""

    notebook: Path
    executed: Path
    cached: bool
    seconds: float


class ChapterError(BookError):
    """A chapter did not run to its end; the message names the cell and the partial output."""

    def __init__(self, notebook: Path, message: str, partial: Path | None = None) -> None:
        super().__init__(notebook, message, partial)
        self.notebook, self.message, self.partial = notebook, message, partial

    def __str__(self) -> str:
        kept = "" if self.partial is None else f"\n  outputs up to there: {self.partial}"
        return f"{self.notebook}: {self.message}{kept}"


def execute(
    root: Path,
    notebook: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
    timeout: float | None = None,
    report: Report = print,
) -> Outcome:
    """Execute one chapter in its own folder, unless its cached copy is still good.

    `notebook` is relative to `root`. `timeout` limits the whole chapter, in seconds. `report`
    receives one line when execution starts and one when it ends.

    Raises `ChapterError` when a cell fails, the time is over, the kernel dies or the disk is
    full; what was executed so far is kept at `cache.failed_path`, and the cache stays as it was.
    An interrupt keeps the partial output in the same way.
    """
    given = dict(parameters or {})
    source = read(root / notebook)
    defaults = default_parameters(source)
    _reject_unknown(notebook, given, defaults)
    made_from = cache.key(root, notebook, source, given)
    found = cache.find(root, notebook, made_from)
    executed = cache.executed_path(root, notebook)
    if isinstance(found, float) and not force:
        report(f"{notebook}: unchanged (it took {found:.0f} s)")
        return Outcome(notebook, executed, True, found)

    report(f"{notebook}: executing ({found if isinstance(found, str) else 'forced'})")
    package = cache.package()
    started = time.monotonic()
    finished = _run(root, notebook, source, given, timeout)
    seconds = time.monotonic() - started
    record = {"seconds": round(seconds, 1), "parameters": {**defaults, **given}}
    clean = without_traces(finished)
    _refuse_floods(notebook, clean)
    probed = _probed(finished)
    clean.metadata[METADATA_KEY] = {**probed[METADATA_KEY], **record}
    files = {name: package[name] for name in probed["files"] if name in package}
    try:
        cache.store(root, notebook, clean, made_from, files, seconds)
    except OSError as error:
        raise ChapterError(notebook, f"its outputs could not be written: {error}") from error
    report(f"{notebook}: executed in {seconds:.0f} s")
    return Outcome(notebook, executed, False, seconds)


def _reject_unknown(
    notebook: Path, parameters: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    unknown = [name for name in parameters if name not in known]
    if unknown:
        listed = ", ".join(known) or "none (no cell is tagged parameters)"
        raise BookError(
            f"{notebook} has no parameter {', '.join(unknown)}; its parameters are: {listed}"
        )


def _refuse_floods(notebook: Path, executed: NotebookNode) -> None:
    """No page can show so much output, and no repository keep it."""
    sizes = [
        len(json.dumps(cell.outputs)) if cell.cell_type == "code" else 0 for cell in executed.cells
    ]
    if sum(sizes) > MOST_BYTES:
        number = max(range(len(sizes)), key=sizes.__getitem__) + 1
        raise ChapterError(
            notebook,
            f"its outputs take {sum(sizes) / 1e6:.0f} MB, of at most {MOST_BYTES / 1e6:.0f}; those "
            f"of cell {number} alone {max(sizes) / 1e6:.0f} MB",
        )


def _probed(finished: NotebookNode) -> dict[str, Any]:
    """Return what the probe cell reported."""
    probes = [cell for cell in finished.cells if PROBE_TAG in cell.metadata.get("tags", [])]
    return dict(probes[-1].outputs[-1].metadata)


def _run(
    root: Path,
    notebook: Path,
    source: NotebookNode,
    parameters: Mapping[str, Any],
    timeout: float | None,
) -> NotebookNode:
    """Execute a copy of the notebook in a working file, which is gone afterwards."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    final = cache.executed_path(root, notebook)
    working = temporary(final, ".ipynb")
    probe = nbformat.v4.new_code_cell(PROBE, metadata={"tags": [PROBE_TAG]})
    prepared = nbformat.from_dict({**source, "cells": [*source.cells, probe]})
    try:
        write_atomically(working, to_bytes(prepared))
        with _kernel_environment(root / notebook):
            papermill.execute_notebook(
                str(working),
                str(working),
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                kernel_manager_class=_own_kernel(),
                extra_arguments=["--log-level=ERROR", f"--IPKernelApp.exec_lines={WATCH}"],
                shutdown_kernel="immediate",
                resources={"metadata": {"path": str((root / notebook).parent)}},
                timeout_func=_countdown(timeout),
            )
        return read(working)
    except papermill.PapermillExecutionError as error:
        what = f"{error.ename}: {error.evalue}"
        raise _failure(root, notebook, source, working, what) from None
    except CellTimeoutError:
        what = f"it was still running when the chapter's {timeout:g} s were over"
        raise _failure(root, notebook, source, working, what) from None
    except DeadKernelError:
        what = "the kernel died (a common reason: memory ran out)"
        raise _failure(root, notebook, source, working, what) from None
    except (OSError, RuntimeError) as error:
        partial = _keep_partial(root, notebook, working)
        raise ChapterError(notebook, f"could not be executed: {error}", partial) from error
    except BaseException:
        _keep_partial(root, notebook, working)
        raise
    finally:
        with suppress(OSError):
            working.unlink(missing_ok=True)


def _countdown(timeout: float | None) -> Callable[[NotebookNode], int] | None:
    """Return how many seconds a cell has, when all cells together have `timeout`."""
    if timeout is None:
        return None
    deadline = time.monotonic() + timeout
    return lambda cell: max(1, round(deadline - time.monotonic()))


def _own_kernel() -> type:
    """Return a kernel manager whose kernel is always the Python that runs this process.

    A kernelspec `python3` in somebody's home folder may point to another environment.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class OwnKernelManager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _no_foreign_kernels(self) -> KernelSpecManager:
            return KernelSpecManager(parent=self, kernel_dirs=[])

    return OwnKernelManager


@contextmanager
def _kernel_environment(notebook: Path) -> Iterator[None]:
    """Set what a kernel inherits, where the user has not, and silence papermill's log."""
    wanted = {**KERNEL_ENVIRONMENT, provenance.NOTEBOOK: str(notebook)}
    added = [name for name in wanted if name not in os.environ]
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in added:
            del os.environ[name]


def _failure(
    root: Path, notebook: Path, source: NotebookNode, working: Path, what: str
) -> ChapterError:
    """Return the error that names the cell that was running, and keep the partial output."""
    reached = _reached_cell(working)
    partial = _keep_partial(root, notebook, working)
    ids = [cell.id for cell in source.cells]
    if reached is None or reached.id not in ids:
        return ChapterError(notebook, what, partial)
    line = next((line for line in reached.source.splitlines() if line.strip()), "").strip()
    number = ids.index(reached.id) + 1
    place = f"cell {number} of {len(ids)} failed, the one that begins with\n    {line}"
    return ChapterError(notebook, f"{place}\n  {what}", partial)


def _reached_cell(working: Path) -> NotebookNode | None:
    """Return the last cell that papermill started."""
    started = [
        cell
        for cell in read(working).cells
        if cell.metadata.get("papermill", {}).get("start_time") is not None
    ]
    return started[-1] if started else None


def _keep_partial(root: Path, notebook: Path, working: Path) -> Path | None:
    """Move what was executed so far to `failed_path`; return that path relative to `root`."""
    kept = cache.failed_path(root, notebook)
    try:
        write_atomically(kept, to_bytes(without_traces(read(working))))
    except (OSError, BookError):
        return None
    return kept.relative_to(root)


# --- all chapters -------------------------------------------------------------------------------


def execute_all(
    root: Path,
    notebooks: list[Path],
    *,
    force: bool = False,
    timeout: float | None = None,
    jobs: int = 1,
    report: Report = print,
) -> tuple[list[Outcome], list[ChapterError]]:
    """Execute chapters, going on after one that fails; return those done and those failed.

    One after the other by default, each with every core. With `jobs` > 1 the cores are divided:
    two kernels that both use both cores run over ten times slower than one. Chapters that measure
    time have the machine for themselves, after the others.
    """
    if jobs < 1:
        raise BookError(f"jobs is the number of chapters at a time, at least 1, not {jobs}")
    alone = [one for one in notebooks if jobs == 1 or measures_time(read(root / one))]
    together = [one for one in notebooks if one not in alone]
    results = _attempt_together(root, together, force, timeout, jobs, report) if together else []
    results += [_attempt(root, notebook, force, timeout, report) for notebook in alone]
    done = [result for result in results if isinstance(result, Outcome)]
    failed = [result for result in results if isinstance(result, ChapterError)]
    return done, failed


def _attempt(
    root: Path,
    notebook: Path,
    force: bool,
    timeout: float | None,
    report: Report = print,
) -> Outcome | ChapterError:
    try:
        return execute(root, notebook, force=force, timeout=timeout, report=report)
    except ChapterError as failure:
        report(str(failure))
        return failure


def _attempt_together(
    root: Path,
    notebooks: list[Path],
    force: bool,
    timeout: float | None,
    jobs: int,
    report: Report,
) -> list[Outcome | ChapterError]:
    available = int(os.environ.get("OMP_NUM_THREADS", 0)) or provenance.cores()
    jobs = min(jobs, len(notebooks))
    share = max(1, available // jobs)
    report(f"{jobs} chapters at a time, each with {share} of {available} threads")
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=get_context("spawn"),
        initializer=_limit_threads,
        initargs=(share,),
    )
    with pool:
        futures = [pool.submit(_attempt, root, one, force, timeout) for one in notebooks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _limit_threads(threads: int) -> None:
    """Give every kernel that this process starts its share of the cores."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)


# --- storing outputs back into the sources ------------------------------------------------------


def refresh(root: Path, outcome: Outcome) -> bool:
    """Store an executed chapter's outputs in its source; return whether the file changed.

    A source whose cells and outputs are the same already is left untouched, so that a refresh
    that changes nothing leaves no difference in version control.
    """
    source, executed = root / outcome.notebook, read(outcome.executed)
    if same_content(read(source), executed):
        return False
    write_atomically(source, to_bytes(executed))
    return True
