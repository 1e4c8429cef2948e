"""Folders of tensors that can be trusted: safetensors, a manifest with SHA-256 sums, no pickle.

A *record* is a folder with `manifest.json` and the safetensors files that it names.  The manifest
holds their hashes and its own.  Checkpoints and results bundles are records.  Files are written
under new names first and the manifest is replaced last, in one step: a reader finds the old record
or the new one and never half of each.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as dump_safetensors
from torch import Tensor

from ncsn_core.errors import CorruptFileError, NCSNError, UnknownNameError
from ncsn_core.files import write_atomically
from ncsn_core.provenance import opened

FORMAT = 3  # of the manifests
MANIFEST = "manifest.json"
SESSION = ("commit", "device", "python", "versions", "precision", "compiled", "processes")
TENSORS = re.compile(r"\w+-[0-9a-f]{12}\.safetensors")


@dataclass(frozen=True)
class Record:
    """A folder of tensors with what is known about them.

    Attributes:
        folder: where it lies.
        manifest: the whole of `manifest.json`.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def kind(self) -> str:
        """What the tensors are: "ncsn", "classifier", "samples" or "bundle"."""
        return self.manifest["kind"]

    @property
    def config(self) -> dict[str, Any]:
        """The settings it came from."""
        return self.manifest.get("config", {})

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured, each number with its sample count."""
        return self.manifest.get("metrics", {})

    @property
    def history(self) -> dict[str, list[Any]]:
        """The loss over the steps."""
        return self.manifest.get("history", {})

    @property
    def provenance(self) -> dict[str, Any]:
        """Seed, seconds and hash of the data; commit, device and versions where no run goes on."""
        return self.manifest.get("provenance", {})

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Who trained from which step on: commit, device, versions, precision, compilation.

        A run that went on under the same conditions has one entry.  Records of before there was
        this list know their last session only, and give it as all.
        """
        found = self.provenance
        if "sessions" in found:
            return found["sessions"]
        return [{"from_step": 0} | {name: found[name] for name in SESSION if name in found}]

    def tensors(self, part: str = "weights") -> dict[str, Tensor]:
        """Read one file of tensors, after checking its SHA-256.

        Raises:
            UnknownNameError: when there is no such part.
            CorruptFileError: when the file is missing, truncated or altered.
        """
        files = self.manifest["files"]
        if part not in files:
            raise UnknownNameError("part of this record", part, files)
        path = self.folder / files[part]["name"]
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise CorruptFileError(
                f"{path.name} of record {self.name!r} cannot be read: {error}"
            ) from error
        if hashlib.sha256(raw).hexdigest() != files[part]["sha256"]:
            raise CorruptFileError(
                f"{path.name} of record {self.name!r} is truncated or altered: {len(raw)} bytes "
                f"whose SHA-256 is not the recorded one. Restore the file or train again"
            )
        try:
            return parse_safetensors(raw)
        except SafetensorError as error:
            raise CorruptFileError(f"{path.name} is not a safetensors file: {error}") from error

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the file with the weights."""
        if "weights" not in self.manifest["files"]:
            raise UnknownNameError("part of this record", "weights", self.manifest["files"])
        return self.manifest["files"]["weights"]["sha256"]

    def has_weights(self, sha256: str | None) -> bool:
        """Whether this is the SHA-256 of the weights, as they are or before they were rounded."""
        return sha256 in (self.weights_sha256, self.manifest.get("rounded_from", ""))


def load(folder: Path | str) -> Record:
    """Open the record in a folder.  Its tensors are verified when they are read.

    Raises:
        NCSNError: when there is none.
        CorruptFileError: when the manifest cannot be read.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise NCSNError(f"there is no record in {folder}: no file {MANIFEST}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"the {MANIFEST} of record {folder.name!r} cannot be read: {error!r}"
        ) from error
    if not _complete(manifest):
        raise CorruptFileError(f"the {MANIFEST} of record {folder.name!r} is incomplete")
    if manifest["sha256"] != manifest_sha256(manifest):
        raise CorruptFileError(
            f"the {MANIFEST} of record {folder.name!r} was altered: its content has another "
            f"SHA-256 than it says. Restore the file"
        )
    opened(folder / MANIFEST)
    return Record(folder, _from_format_2(manifest))


def _from_format_2(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of format 2 with the names of format 3; to be removed at the first release."""
    if manifest.get("format", 0) >= 3:
        return manifest
    renamed = {"sigma_first": "sigma_max", "sigma_last": "sigma_min", "fused": "compiled"}

    def today(found: dict[str, Any]) -> dict[str, Any]:
        return {renamed.get(name, name): value for name, value in found.items()}

    manifest = {key: value for key, value in manifest.items() if key != "format"}
    for part in ("config", "provenance"):
        if part in manifest:
            manifest[part] = today(manifest[part])
    if "sessions" in manifest.get("provenance", {}):
        manifest["provenance"]["sessions"] = [today(s) for s in manifest["provenance"]["sessions"]]
    manifest = {"format": FORMAT, **manifest}
    return manifest | {"sha256": manifest_sha256(manifest)}


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, but for this hash itself."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _complete(manifest: Any) -> bool:
    def is_file(entry: Any) -> bool:
        return (
            isinstance(entry, dict)
            and isinstance(entry.get("sha256"), str)
            and isinstance(entry.get("name"), str)
            and Path(entry["name"]).name == entry["name"]  # never outside of the record
        )

    return (
        isinstance(manifest, dict)
        and isinstance(manifest.get("kind"), str)
        and isinstance(manifest.get("sha256"), str)
        and isinstance(manifest.get("files"), dict)
        and all(is_file(entry) for entry in manifest["files"].values())
        and all(
            isinstance(manifest.get(key, {}), dict)
            for key in ("config", "metrics", "history", "provenance")
        )
    )


def owned_files(folder: Path) -> set[str]:
    """Names of the tensor files that the record in a folder lists; none in a new or empty folder.

    Whoever writes a record asks this first: only these files are ever replaced or deleted.

    Raises:
        NCSNError: when the folder holds something, and no record.
    """
    if not folder.exists():
        return set()
    if not folder.is_dir():
        raise NCSNError(f"{folder} is a file: name a folder")
    if (folder / MANIFEST).exists():
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            manifest = None
        if _complete(manifest):
            names = {entry["name"] for entry in manifest["files"].values()}
            return {name for name in names if TENSORS.fullmatch(name)}
        found = f"a {MANIFEST} that is damaged or another program's"
    else:
        # A process that was killed before its first manifest leaves tensors only.
        visible = (path.name for path in folder.iterdir() if not path.name.startswith("."))
        if all(TENSORS.fullmatch(name) for name in visible):
            return set()
        found = "other files and no record"
    raise NCSNError(f"{folder} holds {found}. It is left as it is: choose a new or an empty folder")


def save(folder: Path | str, parts: Mapping[str, Mapping[str, Tensor]], **manifest: Any) -> Record:
    """Write a record, replacing the one that was in `folder` in one step.

    Args:
        folder: created when missing.
        parts: tensors by part and name; an NCSN has "weights", and "state" while it trains.
        manifest: `kind` and whatever else should be kept, as JSON values.

    Returns:
        The record as written.

    Raises:
        NCSNError: when the folder holds something else than a record; it is left as it is.
        UnwritableError: when a file cannot be written; the old record is still there.
    """
    folder = Path(folder)
    replaceable = owned_files(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    try:
        for part, tensors in parts.items():
            raw = dump_safetensors({k: t.detach().cpu().contiguous() for k, t in tensors.items()})
            digest = hashlib.sha256(raw).hexdigest()
            name = f"{part}-{digest[:12]}.safetensors"
            replaceable.add(name)
            write_atomically(folder / name, raw)
            files[part] = {"name": name, "sha256": digest, "bytes": len(raw)}
        # As JSON gives it back, so that the record is the one that `load` will find.
        content = json.loads(
            json.dumps({"format": FORMAT, **manifest, "files": files}, allow_nan=False)
        )
        content["sha256"] = manifest_sha256(content)
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomically(folder / MANIFEST, text.encode())
    finally:
        # Of the old files and the new ones, those go that the manifest does not name now.
        for name in replaceable - owned_files(folder):
            (folder / name).unlink(missing_ok=True)
    return Record(folder, content)


def export(record: Record, folder: Path | str, *, half: bool = False, **changes: Any) -> Record:
    """Copy a record without its training state, as it is shipped.

    Args:
        record: any record.
        folder: where the copy goes.
        half: keep the weights in float16, at half the size.  They are read as float32 again,
            rounded to about three digits, and the manifest says from which (`rounded_from`).
        changes: update the manifest.
    """
    manifest = {k: v for k, v in record.manifest.items() if k not in ("format", "files", "sha256")}
    parts = {part: record.tensors(part) for part in record.manifest["files"] if part != "state"}
    if half:
        parts["weights"] = {k: t.half() for k, t in parts["weights"].items()}
        manifest.setdefault("rounded_from", record.weights_sha256)
    return save(folder, parts, **{**manifest, **changes})
