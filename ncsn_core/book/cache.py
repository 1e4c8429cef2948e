"""Which chapters have to be executed again: what each was made from, by its SHA-256.

An executed notebook lies in `_build/executed/`, under the path of its source, and beside it the
key of everything it was made from. A key that still matches means that nothing has changed.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from ncsn_core.book import ledger, provenance
from ncsn_core.book.notebook import default_parameters, to_bytes
from ncsn_core.book.tree import BUILD
from ncsn_core.files import write_atomically

LOCK = "requirements.lock"


def executed_path(root: Path, notebook: Path) -> Path:
    """Return where the executed copy of a chapter lies (whether or not it exists)."""
    return root / BUILD / "executed" / notebook


def failed_path(root: Path, notebook: Path) -> Path:
    """Return where the partial output of a chapter that failed is kept."""
    return root / BUILD / "executed" / "failed" / notebook


def key_path(root: Path, notebook: Path) -> Path:
    """Return where the key of an executed chapter lies."""
    return executed_path(root, notebook).with_suffix(".key.json")


def key(
    root: Path, notebook: Path, source: NotebookNode, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what an executed chapter depends on, each ingredient by its SHA-256.

    The cells of the notebook (outputs aside), every file of `ncsn_core`, the ledger of claims, the
    lock file, the parameters, every folder outside the package that a parameter names (a
    checkpoint), and the version of Python.
    """
    values = {**default_parameters(source), **parameters}
    return {
        "notebook": _digest_cells(source),
        "ncsn_core": _digest_folder(provenance.PACKAGE),
        "claims": _digest_file(ledger.find_ledger()),
        LOCK: _digest_file(root / LOCK),
        "parameters": json.loads(json.dumps(dict(parameters), default=str)),
        "checkpoints": _digest_checkpoints(values.values(), (root / notebook).parent),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }


def _digest_cells(notebook: NotebookNode) -> str:
    cells = [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells]
    return _sha256(json.dumps(cells, sort_keys=True).encode())


def _digest_checkpoints(values: Iterable[Any], folder: Path) -> dict[str, str]:
    digests = {}
    for value in values:
        if not isinstance(value, str | Path) or not str(value):
            continue
        named = (folder / Path(value).expanduser()).resolve()
        if named.is_dir() and not named.is_relative_to(provenance.PACKAGE):
            digests[str(value)] = _digest_folder(named)
    return digests


def _digest_folder(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.is_file() and not _is_scratch(inner):
            total.update(f"{inner.as_posix()}\0{_digest_file(path)}\0".encode())
    return total.hexdigest()


def _is_scratch(path: Path) -> bool:
    return path.suffix == ".pyc" or any(
        part == "__pycache__" or part.startswith(".") for part in path.parts
    )


def _digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, or "" where there is none."""
    if not path.is_file():
        return ""
    status = path.stat()
    return _digest_version(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _digest_version(path: Path, modified: int, size: int) -> str:
    """Read each file once a run: one chapter after the other asks for the whole package."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def find(root: Path, notebook: Path, wanted: Mapping[str, Any]) -> float | str:
    """Return how many seconds the cached execution took, or in a few words why there is none."""
    try:
        entry = json.loads(key_path(root, notebook).read_text(encoding="utf-8"))
        stored, output, seconds = entry["key"], entry["output"], float(entry["seconds"])
        changed = [name for name in wanted if stored.get(name) != wanted[name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "no executed copy yet"
    if changed:
        return f"changed: {', '.join(changed)}"
    if _digest_file(executed_path(root, notebook)) != output:
        return "its executed copy is missing or incomplete"
    return seconds


def store(
    root: Path,
    notebook: Path,
    executed: NotebookNode,
    made_from: Mapping[str, Any],
    seconds: float,
) -> None:
    """Write the executed notebook and then its key, each under a temporary name first.

    The key holds the hash of the notebook: a notebook without its own key is never used.
    """
    content = to_bytes(executed)
    entry = {"key": made_from, "output": _sha256(content), "seconds": round(seconds, 1)}
    write_atomically(executed_path(root, notebook), content)
    write_atomically(key_path(root, notebook), json.dumps(entry, indent=1).encode())
    failed_path(root, notebook).unlink(missing_ok=True)
