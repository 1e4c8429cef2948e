"""What ships with the package, and what a trained network is good for: a score, a classifier."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import ncsn_core.checkpoints as checkpoints
from ncsn_core._types import Ladder
from ncsn_core.checkpoints import MANIFEST, Record
from ncsn_core.devices import pick_device
from ncsn_core.errors import CorruptFileError, NCSNError, UnknownNameError
from ncsn_core.networks.build import build_network, build_score
from ncsn_core.networks.score import NoiseConditionalScore
from ncsn_core.schedules import geometric_ladder

if TYPE_CHECKING:
    from ncsn_core.metrics.classifier import Classifier

MODELS = Path(__file__).parent / "models"
RESULTS = Path(__file__).parent / "results"


class Model(Record):
    """The record of a trained network."""

    @property
    def sigmas(self) -> Ladder:
        """The noise ladder of an NCSN."""
        try:
            c = self.config
            return geometric_ladder(c["sigma_max"], c["sigma_min"], c["levels"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._bad_configuration(error) from error

    def score(
        self,
        device: torch.device | str = "cpu",
        *,
        autocast: torch.dtype | None = None,
        compile: bool = False,
    ) -> NoiseConditionalScore:
        """The trained score s_θ(x, σ) of an NCSN, in evaluation mode, with its averaged weights.

        Args:
            device: where it goes, see `ncsn_core.devices.pick_device`.
            autocast: see `NoiseConditionalScore`.
            compile: compile the normalizations; repays itself over some hundred evaluations.  An
                energy differentiates them in a way that cannot be compiled, and runs without.

        Raises:
            NCSNError: when this record is no NCSN, or the device not here.
            CorruptFileError: when the weights do not fit the configuration.
        """
        self._expect("ncsn")
        target = pick_device(device)
        try:
            with torch.device("meta"):  # whatever the sizes are, nothing is allocated for them
                network = build_network(self.config)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise self._bad_configuration(error) from error
        self._fill(network)
        network.compile_normalizations(compile and self.config.get("parametrization") != "energy")
        score = build_score(self.config, network, self.sigmas, autocast=autocast)
        return score.to(target).eval().requires_grad_(False)

    def classifier(self, device: torch.device | str = "cpu") -> "Classifier":
        """The trained classifier, in evaluation mode.

        Raises:
            NCSNError: when this record is no classifier, or the device not here.
            CorruptFileError: when the weights do not fit.
        """
        from ncsn_core.metrics.classifier import Classifier

        self._expect("classifier")
        target, network = pick_device(device), Classifier()
        self._fill(network)
        return network.to(target).eval().requires_grad_(False)

    def bundle(self, name: str) -> Record:
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

    def _expect(self, kind: str) -> None:
        if self.kind != kind:
            raise NCSNError(
                f"{self.name!r} is a record of kind {self.kind!r} and not {kind!r}, as "
                f"{', '.join(available(kind))} are"
            )

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


def model(record: Record) -> Model:
    """A record, as what can be made of it."""
    return Model(record.folder, record.manifest)


def available(kind: str | None = None) -> tuple[str, ...]:
    """Names of the records that ship with the package."""
    names = sorted(p.parent.name for p in MODELS.glob(f"*/{MANIFEST}"))
    return tuple(n for n in names if kind is None or checkpoints.load(MODELS / n).kind == kind)


def load(name_or_path: str | Path) -> Model:
    """Open a shipped network by name, or any by the folder of its record.

    Its tensors are verified when they are read.

    Raises:
        UnknownNameError: when there is no such record; the message lists the shipped NCSNs.
        NCSNError: for a file; the message says what to do with it.
        CorruptFileError: when the manifest cannot be read.
    """
    given = Path(name_or_path)
    for folder in (MODELS / given, given):
        if (folder / MANIFEST).is_file():
            return model(checkpoints.load(folder))
    if given.is_file():
        raise NCSNError(_not_a_folder(given))
    inside = sorted(p.parent.name for p in given.glob(f"*/{MANIFEST}")) if given.is_dir() else []
    hint = f"; the folder holds {', '.join(inside)}: name one of them with it" if inside else ""
    raise UnknownNameError(
        "checkpoint",
        name_or_path,
        available("ncsn"),
        f"A folder that holds a {MANIFEST} works too{hint}",
    )


def _not_a_folder(file: Path) -> str:
    """What to do with a file that was given in the place of a folder."""
    if (file.parent / MANIFEST).is_file():
        return f"{file} is a part of a checkpoint: name its folder, {file.parent}"
    return (
        f"{file} is a single file, and a checkpoint is a folder: one of the authors' code is made "
        f"ours first, by ncsn convert {file} FOLDER --preset NAME"
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
    return checkpoints.load(folder / name)
