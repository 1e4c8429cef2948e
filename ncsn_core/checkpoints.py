"""Folders of tensors that can be trusted: safetensors, a manifest with SHA-256 sums, no pickle.

A *record* is a folder with `manifest.json` and the safetensors files that it names.  The manifest
holds their hashes and its own.  Checkpoints
and results bundles are records.  Files are written under new names first and the manifest is
replaced last, in one step: a reader finds the old record or the new one and never half of each.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as dump_safetensors
from torch import Tensor, nn

from ncsn_core import provenance
from ncsn_core.errors import CorruptFileError, NCSNError, UnknownNameError
from ncsn_core.files import write_atomically
from ncsn_core.networks import (
    ContinuousScore,
    DigitClassifier,
    EnergyScore,
    NoiseConditionalScore,
    RefineNet,
)
from ncsn_core.schedules import geometric_ladder

MODELS = Path(__file__).parent / "models"
RESULTS = Path(__file__).parent / "results"
MANIFEST = "manifest.json"
SESSION = ("commit", "device", "python", "versions", "precision", "fused", "processes")
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
        """What the tensors are: "ncsn", "classifier" or "bundle"."""
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
    def sigmas(self) -> Float[Tensor, " levels"]:
        """The noise ladder of an NCSN."""
        try:
            c = self.config
            return geometric_ladder(c["sigma_first"], c["sigma_last"], c["levels"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._bad_configuration(error) from error

    def score(
        self,
        device: torch.device | str = "cpu",
        *,
        autocast: torch.dtype | None = None,
        fuse: bool = False,
    ) -> NoiseConditionalScore:
        """The trained score s_θ(x, σ) of an NCSN, in evaluation mode, with its averaged weights.

        Args:
            device: where it goes.
            autocast: see `NoiseConditionalScore`.
            fuse: compile the normalizations; repays itself over some hundred evaluations.  An
                energy differentiates them in a way that cannot be compiled, and runs without.

        Raises:
            UnknownNameError: when this record is no NCSN.
            CorruptFileError: when the weights do not fit the configuration.
        """
        self._expect("ncsn")
        try:
            with torch.device("meta"):  # whatever the sizes are, nothing is allocated for them
                network = build_network(self.config)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise self._bad_configuration(error) from error
        self._fill(network)
        network.fuse_normalizations(fuse and self.config.get("parametrization") != "energy")
        score = build_score(self.config, network, self.sigmas, autocast=autocast)
        return score.to(device).eval().requires_grad_(False)

    def classifier(self, device: torch.device | str = "cpu") -> DigitClassifier:
        """The trained digit classifier, in evaluation mode.

        Raises:
            UnknownNameError: when this record is no classifier.
            CorruptFileError: when the weights do not fit.
        """
        self._expect("classifier")
        network = DigitClassifier()
        self._fill(network)
        return network.to(device).eval().requires_grad_(False)

    def bundle(self, name: str) -> "Record":
        """Results that were measured with this checkpoint.

        Raises:
            UnknownNameError: when there are none of that name.
            CorruptFileError: when they were measured with other weights.
        """
        found = _named(f"results bundle of {self.name!r}", name, self.folder / "bundles")
        if not self.has_weights(found.provenance.get("weights_sha256")):
            raise CorruptFileError(
                f"bundle {name!r} was measured with other weights than those of {self.name!r}; "
                f"run notebooks/training/evaluate_ncsn.ipynb again"
            )
        return found

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the file with the weights."""
        if "weights" not in self.manifest["files"]:
            raise UnknownNameError("part of this record", "weights", self.manifest["files"])
        return self.manifest["files"]["weights"]["sha256"]

    def has_weights(self, sha256: str | None) -> bool:
        """Whether this is the SHA-256 of the weights, as they are or before they were rounded."""
        return sha256 in (self.weights_sha256, self.manifest.get("rounded_from", ""))

    def _expect(self, kind: str) -> None:
        if self.kind != kind:
            raise UnknownNameError(f"checkpoint of kind {kind!r}", self.name, available(kind))

    def _bad_configuration(self, error: Exception) -> CorruptFileError:
        return CorruptFileError(f"the configuration of {self.name!r} describes no NCSN: {error!r}")

    def _fill(self, network: nn.Module) -> None:
        weights = {name: tensor.float() for name, tensor in self.tensors().items()}
        try:
            network.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise CorruptFileError(
                f"the weights of {self.name!r} do not fit its configuration: {error}"
            ) from error


def build_network(config: Mapping[str, Any]) -> RefineNet:
    """The RefineNet that a configuration describes, freshly initialized."""
    return RefineNet(
        config["channels"],
        config["image_channels"],
        config["image_size"],
        config["levels"] if config.get("conditional", True) else 1,
        keep_means=config["keep_means"],
        normalize=config.get("normalize", True),
    )


def build_score(
    config: Mapping[str, Any],
    network: nn.Module,
    sigmas: Float[Tensor, " levels"],
    *,
    autocast: torch.dtype | None = None,
) -> NoiseConditionalScore:
    """The score that a configuration makes of its network."""
    parametrization = config.get("parametrization")
    if parametrization == "continuous":
        mean, std = config["data_mean"], config["data_std"]
        return ContinuousScore(network, sigmas, data_mean=mean, data_std=std, autocast=autocast)
    kind = EnergyScore if parametrization == "energy" else NoiseConditionalScore
    conditional = config.get("conditional", True)
    return kind(network, sigmas, conditional=conditional, autocast=autocast)


def available(kind: str | None = None) -> tuple[str, ...]:
    """Names of the records that ship with the package."""
    names = sorted(p.parent.name for p in MODELS.glob(f"*/{MANIFEST}"))
    return tuple(n for n in names if kind is None or _read(MODELS / n).kind == kind)


def load(name_or_path: str | Path) -> Record:
    """Open a shipped record by name, or any record by its folder.

    Its tensors are verified when they are read.

    Raises:
        UnknownNameError: when there is no such record; the message lists the shipped ones.
        CorruptFileError: when the manifest cannot be read.
    """
    for folder in (MODELS / name_or_path, Path(name_or_path)):
        if (folder / MANIFEST).is_file():
            return _read(folder)
    raise UnknownNameError(
        "checkpoint", name_or_path, available(), "A folder that holds a manifest.json works too"
    )


def results(name: str) -> Record:
    """Measurements that ship with the package and belong to no checkpoint.

    Each was written by a notebook of `notebooks/training/`, under this name.

    Raises:
        UnknownNameError: when there are none of that name; the message lists what there is.
        CorruptFileError: when the manifest cannot be read.
    """
    return _named("results", name, RESULTS)


def _named(kind: str, name: str, folder: Path) -> Record:
    """One of a folder's records; the others are listed only where there is none of that name."""
    inside = Path(name).name == name and name != ".."
    if not inside or not (folder / name / MANIFEST).is_file():
        known = sorted(p.parent.name for p in folder.glob(f"*/{MANIFEST}"))
        raise UnknownNameError(kind, name, known)
    return _read(folder / name)


def _read(folder: Path) -> Record:
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
    provenance.opened(folder / MANIFEST)
    return Record(folder, manifest)


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
        content = json.loads(json.dumps({"format": 2, **manifest, "files": files}, allow_nan=False))
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
