"""Which chapters have to be executed again: what each was made from, by its SHA-256.

An executed notebook lies in `_build/executed/`, under the path of its source, and beside it the
key of everything it was made from: what is known before it runs, the files of the package that its
kernel then loaded, and what the ledger said of the claims that it checked. A key that still matches
means that nothing has changed.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

import ncsn_core.provenance as provenance
from ncsn_core.book.claims import METADATA_KEY, from_metadata
from ncsn_core.book.ledger import load_ledger, measurement_name
from ncsn_core.book.notebook import default_parameters, to_bytes
from ncsn_core.book.tree import BUILD
from ncsn_core.files import exclusive, write_atomically

LOCK = "requirements.lock"


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Be the only process that writes into the build folder, until the block ends.

    Raises:
        NCSNError: at once, when another process is building or executing the book.
    """
    kept = root / BUILD / "executed"
    folders = (path for path in kept.rglob("*") if path.is_dir())
    with exclusive(root / BUILD, [kept, *folders]):
        yield


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
    """Return what a chapter depends on before it runs, each ingredient by its SHA-256.

    The cells of the notebook (outputs aside), the lock file, the parameters, every folder outside
    the package that a parameter names (a checkpoint), and the version of Python.
    """
    values = {**default_parameters(source), **parameters}
    return {
        "notebook": _digest_cells(source),
        LOCK: _digest_file(root / LOCK),
        "parameters": json.loads(json.dumps(dict(parameters), default=str)),
        "checkpoints": _digest_checkpoints(values.values(), (root / notebook).parent),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }


def package() -> dict[str, str]:
    """Return every file of the package, and every folder of records, by its SHA-256.

    That of a folder is of its list: a new model changes the chapter that shows all models. Folders
    of modules are listed by every import, and have none.
    """
    base = provenance.PACKAGE
    kept = [path for path in base.rglob("*") if not _is_scratch(path.relative_to(base))]
    records = [path for path in kept if not (path / "__init__.py").is_file()]
    return {path.relative_to(base.parent).as_posix(): _digest(path) for path in records}


def _digest(path: Path) -> str:
    if path.is_dir():
        names = [one.name for one in path.iterdir() if not _is_scratch(Path(one.name))]
        return _sha256("\0".join(sorted(names)).encode())
    return _digest_file(path)


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
    """Return how many seconds the cached execution took, or in a few words why there is none.

    A claim has changed when the ledger of today gives its check another line.
    """
    ledger = load_ledger()
    try:
        entry = json.loads(key_path(root, notebook).read_text(encoding="utf-8"))
        stored, output, seconds = entry["key"], entry["output"], float(entry["seconds"])
        changed = [name for name in wanted if stored.get(name) != wanted[name]]
        for name, digest in entry["files"].items():
            if _digest(provenance.PACKAGE.parent / name) != digest:
                changed.append(name)
        for record, line in entry["verdicts"]:
            if str(from_metadata(record, ledger)) != line:
                changed.append(f"claim {measurement_name(record['claim'], record['part'])}")
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
    files: Mapping[str, str],
    seconds: float,
) -> None:
    """Write the executed notebook and then its key, each under a temporary name first.

    The key holds the hash of the notebook: a notebook without its own key is never used. `files` is
    what the kernel loaded of the package, as it was before, should anybody have edited it since.
    """
    content = to_bytes(executed)
    entry = {
        "key": made_from,
        "files": files,
        "verdicts": list(_verdicts(executed)),
        "output": _sha256(content),
        "seconds": round(seconds, 1),
    }
    write_atomically(executed_path(root, notebook), content)
    write_atomically(key_path(root, notebook), json.dumps(entry, indent=1).encode())
    failed_path(root, notebook).unlink(missing_ok=True)


def _verdicts(executed: NotebookNode) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield what every check of a claim has recorded, and the line that it has shown."""
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            record = output.get("metadata", {}).get(METADATA_KEY, {})
            if "claim" in record:
                yield record, output.data["text/plain"]
