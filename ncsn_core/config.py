"""Configurations: a preset names the data set and network, a profile the budget."""

import ast
import json
import math
import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from ncsn_core._types import Ladder
from ncsn_core.errors import UnknownNameError
from ncsn_core.files import is_there
from ncsn_core.schedules import geometric_ladder

if TYPE_CHECKING:
    from ncsn_core.data.own import OwnImages

OWN = "own"
"""The preset, and the data set, of images that somebody brings."""

CHOICES = {
    "rate_schedule": ("constant", "cosine"),
    "parametrization": ("score", "energy", "continuous"),
    "objective": ("denoising", "sliced"),
}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides what an NCSN training run computes.

    Attributes:
        preset, profile: where the values came from.
        dataset: name for `ncsn_core.data.load_images`; of images that somebody brings the path, or
            "own" when they have none.
        image_channels, image_size, channels, levels: see `ncsn_core.networks.RefineNet`.
        sigma_max, sigma_min: ends of the geometric ladder.
        keep_means: the "++" of the normalization.
        normalize: False for a network without normalization, an ablation.
        conditional: whether the network is told the noise level; False is an ablation.
        parametrization: "score", as in the paper; "energy", see `ncsn_core.networks.EnergyScore`;
            "continuous", see `ncsn_core.networks.ContinuousScore`, trained on a σ whose logarithm
            is uniform between the ladder's ends.
        data_mean, data_std: of the pixels; a "continuous" network is preconditioned with them.
        objective: "denoising" (Eq. 6), or "sliced", see
            `ncsn_core.objectives.sliced_score_matching_vr`.
        flip: random left-right flips.
        train_images: use this many images, the first ones; all when None.
        steps, batch_size: length of the run; images a step, over all devices together.
        learning_rate: Adam's, at the start.
        rate_schedule: "constant", or "cosine" down to zero at the last step.
        decay_steps: how many steps at the end of a constant rate let it fall to zero, in a straight
            line.  A run may be planned without them and get them with its last change of `steps`,
            so that nobody has to know at the start how long it will be.
        ema_decay: decay per step of the weights' exponential moving average, which the first steps
            approach from below, see `ema_decay_at`; 0 for none.
        gradient_clip: largest gradient norm; None for no clipping, as in the paper.
        weight_power: λ(σ) = σ^power.
        log_every, checkpoint_every: in steps; the second is a multiple of the first.
        seed: of the initial weights and of everything drawn in training.
    """

    preset: str = "custom"
    profile: str = "custom"
    dataset: str
    image_channels: int
    image_size: int
    channels: int
    levels: int
    sigma_max: float
    sigma_min: float
    keep_means: bool = True
    normalize: bool = True
    conditional: bool = True
    parametrization: str = "score"
    data_mean: float = 0.5
    data_std: float = 0.5
    objective: str = "denoising"
    flip: bool
    train_images: int | None = None
    steps: int
    batch_size: int
    learning_rate: float = 1e-3
    rate_schedule: str
    decay_steps: int = 0
    ema_decay: float
    gradient_clip: float | None = None
    weight_power: float = 2.0
    log_every: int
    checkpoint_every: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: naming the field, what it was and what it may be.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if not _fits(value, field.type):
                raise ValueError(f"{field.name} must be {_describe(field.type)}; got {value!r}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)
        self._check_ranges()
        self._check_combinations()
        geometric_ladder(self.sigma_max, self.sigma_min, self.levels)

    def _check_ranges(self) -> None:
        """What each number may be by itself."""
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "train_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        for name in ("weight_power", "data_mean"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite; got {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip", "data_std"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {value}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1); got {self.ema_decay}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0; got {self.seed}")

    def _check_combinations(self) -> None:
        """What some settings require of others."""
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of log_every; "
                f"got {self.checkpoint_every} and {self.log_every}"
            )
        longest = self.steps if self.rate_schedule == "constant" else 0
        if not 0 <= self.decay_steps <= longest:
            raise ValueError(
                f"decay_steps must be in [0, {longest}], at {self.steps} steps of a "
                f"{self.rate_schedule} rate; got {self.decay_steps}"
            )
        told = self.objective == "denoising" and self.conditional and self.levels > 1
        if self.parametrization == "continuous" and not told:
            raise ValueError(
                "a continuous parametrization is trained by denoising, is told the noise level "
                "and has at least two levels"
            )

    @property
    def differentiates_twice(self) -> bool:
        """Whether a gradient step needs second derivatives of the network."""
        return self.objective == "sliced" or self.parametrization == "energy"

    @property
    def sigmas(self) -> Ladder:
        """The noise levels."""
        return geometric_ladder(self.sigma_max, self.sigma_min, self.levels)

    def learning_rate_at(self, step: int) -> float:
        """Adam's rate at a step, counted from 0.

        Half a cosine down to zero, or constant and then down to zero in `decay_steps` (the
        warmup-stable-decay schedule of Hu et al. 2024, without its warm-up).
        """
        if self.rate_schedule == "constant":
            left = self.steps - step
            return self.learning_rate * min(1.0, left / max(1, self.decay_steps))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def ended_after(self, step: int) -> "TrainingConfig":
        """The same run, to end a tenth beyond `step`; meanwhile its constant rate falls to zero.

        The tenth is a whole number of `checkpoint_every`, at least one.

        Raises:
            ValueError: for a rate that is not constant.
        """
        tenth = max(1, round(step / 10 / self.checkpoint_every)) * self.checkpoint_every
        return replace(self, steps=step + tenth, decay_steps=tenth)

    def ema_decay_at(self, step: int) -> float:
        """The moving average's decay at a step, counted from 0: min(decay, step / (step + 9)).

        The average begins as the first weights, and a young one forgets quickly: its memory is a
        tenth of the run until it is 1 / (1 − decay) steps long.  With 0.999 from the start, the
        average after 300 steps would still be the first weights to three quarters.
        """
        return min(self.ema_decay, step / (step + 9))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def typed(kind: Any, **parameter: Any) -> Any:
    """A parameter of a notebook as its kind, also where it came as text.

    papermill passes `-p overrides '{"steps": 5}'`, and `-r` everything, as text.

    Args:
        kind: `int`, `float`, `bool`, `str`, `dict` or `list`, or one of them `| None`.
        parameter: its name and value, as in `typed(float | None, minutes=minutes)`.

    Raises:
        ValueError: when it is none; the message names it.
    """
    ((name, value),) = parameter.items()
    plain, *optional = get_args(kind) or (kind,)
    if isinstance(value, str) and (plain is not str or (optional and value in NOTHING)):
        for reader in (ast.literal_eval, json.loads):  # as Python writes it, as JSON does
            try:
                value = reader(value.strip())
                break
            except (ValueError, SyntaxError):
                continue
        value = None if optional and value in NOTHING else value
    if plain is int and isinstance(value, float) and value.is_integer():  # 1e3
        value = int(value)
    nothing = bool(optional) and value is None
    if plain in (dict, list, str):
        fits = nothing or isinstance(value, plain)
    else:
        fits = nothing or (value is not None and _fits(value, plain))
    if not fits:
        ending = " or None" if optional else ""
        raise ValueError(f"{name} must be {KINDS[plain]}{ending}; got {value!r}")
    return value


NOTHING = ("None", "none", "null", "")
WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
KINDS = WORDS | {
    bool: "True or False",
    dict: 'settings, such as {"steps": 20000}',
    list: 'a list, such as ["a", "b"]',
}


def _fits(value: object, kind: Any) -> bool:
    if value is None:
        return kind in (int | None, float | None)
    plain = {int | None: int, float | None: float}.get(kind, kind)
    if plain is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, plain) and (plain is bool or not isinstance(value, bool))


def _describe(kind: Any) -> str:
    if kind in WORDS:
        return WORDS[kind]
    return f"{WORDS[int if kind == int | None else float]} or null"


class _Loader(yaml.SafeLoader):
    """YAML as people write numbers: 1e-4 is one without a point, 2e4 is whole, and 010 is ten."""

    def power(self, node: yaml.ScalarNode) -> int | float:
        value = float(node.value.replace("_", ""))
        return int(value) if value.is_integer() else value

    def whole(self, node: yaml.ScalarNode) -> int:
        digits = node.value.replace("_", "")
        decimal = re.fullmatch(r"[-+]?[0-9]+", digits)
        return int(digits) if decimal else self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)
POWER = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_Loader.add_constructor("!power", _Loader.power)
_Loader.yaml_implicit_resolvers = {  # before YAML's own
    first: [("!power", POWER), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*"-+.0123456789", *_Loader.yaml_implicit_resolvers}
}


def read_yaml(text: str) -> Any:
    """The values in a text in YAML, where 1e-4 and 2E4 are numbers too.

    Raises:
        yaml.YAMLError: when it is no YAML.
    """
    return yaml.load(text, _Loader)  # a SafeLoader


@cache
def _read(name: str) -> dict[str, dict[str, Any]]:
    return read_yaml((Path(__file__).parent / name).read_text(encoding="utf-8"))


def presets() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(_read("presets.yaml"))


def profiles() -> tuple[str, ...]:
    """Names of the profiles."""
    return tuple(_read("profiles.yaml"))


def load_config(preset: str = "mnist", profile: str = "smoke", **overrides: Any) -> TrainingConfig:
    """The configuration of a preset under a profile; `overrides` replace single values.

    A path in the place of the preset, of a folder of images or a file of arrays, gives that of
    `config_for`: the images are read, at the size and with the channels of the overrides
    `image_size` and `image_channels`.

    Raises:
        UnknownNameError: for an unknown preset, profile or override; the message lists the known.
        ValueError: for a value that does not fit.
        NCSNError: for a path as `ncsn_core.data.read_images`.
    """
    if preset not in presets():
        if not is_there(preset):
            hint = "A folder of images, an .npz or an .npy file works too, and there is none here"
            raise UnknownNameError("preset", preset, presets(), hint)
        from ncsn_core.data.own import read_images

        size, channels = overrides.get("image_size"), overrides.get("image_channels")
        return config_for(read_images(preset, size=size, channels=channels), profile, **overrides)
    if profile not in profiles():
        raise UnknownNameError("profile", profile, profiles())
    known = [field.name for field in fields(TrainingConfig)]
    values = {
        "preset": preset,
        "profile": profile,
        **_read("presets.yaml")[preset],
        **_read("profiles.yaml")[profile]["training"],
        **overrides,
    }
    for name in values:
        if name not in known:
            raise UnknownNameError("setting", name, known)
    needed = [field.name for field in fields(TrainingConfig) if field.default is MISSING]
    lacking = [name for name in needed if name not in values]
    if lacking:
        raise ValueError(f"the preset {preset!r} under {profile!r} lacks {', '.join(lacking)}")
    for field in fields(TrainingConfig):  # "2" in YAML is a number like "2.0"
        value = values.get(field.name)
        if field.type in (float, float | None) and type(value) is int:
            values[field.name] = float(value)
    return TrainingConfig(**values)


def config_for(found: "OwnImages", profile: str = "smoke", **overrides: Any) -> TrainingConfig:
    """The configuration of a profile for images of one's own.

    They decide the shape of the network's input, and a batch holds at most as many as there are to
    train on.  Noise levels and width are the paper's for images of so many channels: made for some
    thousand numbers an image; larger ones may need a larger `sigma_max` and more `levels`.

    Args:
        found: from `ncsn_core.data.read_images`.
        profile, overrides: see `load_config`.

    Raises:
        UnknownNameError, ValueError: as `load_config`; for images that are not square or of an odd
            size.
    """
    _, image_channels, height, width = found.images.shape
    if height != width or height % 2 or height < 4:
        raise ValueError(
            f"the network takes square images of an even size, 4 × 4 or more; these have {height} "
            f"× {width} pixels: crop and scale them, as in --size 32, image_size=32 or size=32"
        )
    theirs = {
        "dataset": found.source,
        "image_channels": image_channels,
        "image_size": height,
        "flip": False,
    }
    base = "mnist" if image_channels == 1 else "cifar10"
    planned = replace(load_config(base, profile, **theirs | overrides), preset=OWN)
    available = len(found.split()[0])
    if "batch_size" in overrides or planned.batch_size <= available:
        return planned
    return replace(planned, batch_size=available)


@dataclass(frozen=True, kw_only=True)
class EvaluationBudget:
    """How many samples an evaluation draws, and how.

    Attributes:
        samples: how many.
        steps_per_level: T of Algorithm 1.
        batch_size: chains at a time.
    """

    samples: int
    steps_per_level: int
    batch_size: int


def load_evaluation_budget(profile: str = "smoke") -> EvaluationBudget:
    """What a profile spends on evaluation.

    Raises:
        UnknownNameError: for an unknown profile; the message lists the known.
    """
    if profile not in profiles():
        raise UnknownNameError("profile", profile, profiles())
    return EvaluationBudget(**_read("profiles.yaml")[profile]["evaluation"])
