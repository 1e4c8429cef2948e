"""The authors' pretrained networks as records of ours.

Their public code saves `[state_dict, optimizer_state]` of a `CondRefineNetDilated` with
`torch.save`.  The network is the one of `ncsn_core.networks.RefineNet`, layer for layer; only the
names differ, and where γ, α and β are kept::

    theirs                                   ours
    ---------------------------------------  ------------------------------------------------------
    begin_conv, normalizer, end_conv         begin, norm, end
    res1.0, res1.1, res2.0, …, res4.1        blocks.0, blocks.1, blocks.2, …, blocks.7
      normalize1, conv1, normalize2, conv2,    norm1, conv1, norm2, conv2, shortcut
      shortcut
      conv2.conv, shortcut.conv in res2.0      the same; a mean-pool wrapper is around theirs
    refine1, …, refine4                      refine.0, …, refine.3
      adapt_convs.i.b_s_norm, b_s_conv         adapt.i.norms.k, convs.k with k = 2(b − 1) + s − 1
      msf.norms.i, convs.i                     fuse.norms.i, convs.i
      crp.norms.i, convs.i                     pool.norms.i, convs.i
      output_convs.b_s_norm, b_s_conv          output.norms.k, convs.k
    embed.weight [levels, 3C] in each norm   gamma, alpha, beta [levels, C]: its thirds, in order

Their later code (ncsnv2) has the same network and saves `[state_dict, optimizer_state, epoch,
step, shadow]`, the last being averaged weights.  Others nest the tensors in dictionaries, and
wrappers put `module.` or `_orig_mod.` into the names: `read_checkpoint` finds them there.
"""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

import ncsn_core.checkpoints as checkpoints
import ncsn_core.provenance as provenance
from ncsn_core.config import load_config
from ncsn_core.data.datasets import check_size
from ncsn_core.errors import CorruptFileError, NCSNError
from ncsn_core.networks.build import build_network
from ncsn_core.networks.refinenet import RefineNet
from ncsn_core.pretrained import Model, model

THIRDS = ("gamma", "alpha", "beta")  # of the authors' `embed.weight`, from left to right


class Found(NamedTuple):
    """A network in a checkpoint.

    Attributes:
        state: tensors by the authors' names.
        averaged: whether they are a moving average of the trained weights.
        place: where in the file they were, such as "ema/shadow"; empty when it is all there is.
        step: of the training, when the file says it.
    """

    state: dict[str, Tensor]
    averaged: bool
    place: str
    step: int | None


def convert(
    source: Path | str,
    folder: Path | str,
    preset: str,
    *,
    image_size: int | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    input_range: tuple[float, float] | None = None,
    rescaled: bool = False,
) -> Model:
    """Write a checkpoint of the authors' code as a record, without running anything in it.

    What the file tells is read from it: channels, image channels, number of noise levels, and the
    step where it has one; averaged weights are preferred.  The rest is the preset's: the data set,
    the size of its images, both ends of the noise ladder.  How the network was trained is in
    neither, and the record does not say it either.

    A network that was trained on images in [a, b] knows the score of y = a + (b − a) x.  That of x
    in [0, 1] at noise σ is (b − a) times the one of y at noise (b − a) σ, and so it is written.

    Args:
        source: the authors' file, or a safetensors file of the same tensors.
        folder: where the record goes; must not hold one already.
        preset: the data that the network was trained on, see `ncsn_core.config.presets`.
        image_size: when it is not the preset's.
        sigma_max, sigma_min: when they are not the preset's; in the units of `input_range`.
        input_range: of the images that the network was given, when it is not (0, 1).
        rescaled: the network took them as they are and did not map them by 2y − 1 first, which
            the authors' later code does under `rescaled: true`; `input_range` is then (−1, 1)
            unless given.

    Raises:
        CorruptFileError: when `source` is no such checkpoint.
        NCSNError: when the network is not one for the preset's images, or `folder` is taken.
        ValueError: for an unknown preset, or a size, noise level or range that does not fit.
    """
    source, folder = Path(source), Path(folder)
    if (folder / checkpoints.MANIFEST).exists():
        raise NCSNError(f"{folder.name!r} already holds a checkpoint; choose another folder")
    low, high = input_range or ((-1.0, 1.0) if rescaled else (0.0, 1.0))
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"an input range goes from a smaller to a larger number; got {low}, {high}"
        )
    raw = source.read_bytes()
    found = read_checkpoint(raw, source.name)
    weights = from_authors(found.state)
    given = {"image_size": image_size, "sigma_max": sigma_max, "sigma_min": sigma_min}
    overrides = {name: value for name, value in given.items() if value is not None}
    config = configuration(network_size(found.state), preset, **overrides)
    origin: dict[str, Any] = {"file": source.name, "sha256": hashlib.sha256(raw).hexdigest()}
    if found.place:
        origin |= {"weights": found.place, "averaged": found.averaged}
    if (low, high) != (0, 1):
        origin["input_range"] = [low, high]
        for name in ("sigma_max", "sigma_min"):
            config[name] /= high - low
        for name in ("end.weight", "end.bias"):
            weights[name] = weights[name] * (high - low)
    if rescaled:  # y = 2y' − 1, of the y' that our network is then given
        low, high = (low + 1) / 2, (high + 1) / 2
    if (low, high) != (0, 1):
        config["input_range"] = [low, high]
    record = checkpoints.save(
        folder,
        {"weights": weights},
        kind="ncsn",
        config=config,
        step=found.step,
        metrics={},
        history={},
        provenance={"commit": provenance.commit(), "converted_from": origin},
    )
    return model(record)


def read_checkpoint(raw: bytes, name: str) -> Found:
    """The network in what `torch.save` or safetensors wrote, by the authors' names.

    It may lie anywhere in lists and dictionaries, whatever stands beside it, and its keys may carry
    prefixes.  Of several, the averaged one is taken: by the name of its place, or as the second in
    a list.  A pickle that would run code is refused before it does.

    Args:
        raw: the file's bytes.
        name: what to call it in a message.

    Raises:
        CorruptFileError: when there is no such thing in it.
    """
    content = _read(raw, name)
    nodes = dict(_nodes(content))
    networks = {k: net for place, node in nodes.items() for k, net in _networks(place, node)}
    if not networks:
        return Found(_other_network(content, nodes, name), False, "", None)
    first = next(iter(networks.values()))
    for place, node in nodes.items():  # averages that are kept as a list, in the network's order
        if isinstance(node, (list, tuple)) and _shapes(node) == _shapes(first.values()):
            networks[place] = dict(zip(first, node, strict=True))
    averaged = [place for place in networks if AVERAGED.search(place)]
    if not averaged and isinstance(content, (list, tuple)):
        averaged = list(networks)[1:]  # the authors' later list
    place = averaged[0] if averaged else next(iter(networks))
    alone = len(networks) == 1 and not averaged and place in ("", "0")
    said = "" if alone else place or "its top level"
    return Found(networks[place], bool(averaged), said, _step(content))


AVERAGED = re.compile(r"(?i)(^|[^a-z])(ema|shadow|swa|avg|average|averaged)(?![a-z])")
WRAPPERS = re.compile(r"(?<=\.)(_orig_mod|module)\.")  # of torch.compile and of data parallelism
FIRST = "begin_conv.weight"
DEEPEST = 6  # a pickle may hold itself


def _nodes(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every list and dictionary in nested ones, by its place, outermost first."""
    if not isinstance(content, (dict, list, tuple)) or place.count("/") > DEEPEST:
        return
    yield place, content
    for key, inner in content.items() if isinstance(content, dict) else enumerate(content):
        yield from _nodes(inner, f"{place}/{key}".strip("/"))


def _networks(place: str, node: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The networks among the tensors of one dictionary, one for each prefix of their names."""
    if not isinstance(node, dict):
        return
    named = {WRAPPERS.sub("", k): t for k, t in node.items() if isinstance(k, str)}
    state = {key: t for key, t in named.items() if isinstance(t, Tensor)}
    prefixes = [key.removesuffix(FIRST) for key in state if key.endswith(FIRST)]
    for prefix in prefixes:
        longer = tuple(p for p in prefixes if len(p) > len(prefix))
        keys = [key for key in state if key.startswith(prefix) and not key.startswith(longer)]
        names = [place, *(n for n in prefix.split(".") if n not in ("module", "_orig_mod"))]
        counter = prefix.removesuffix("module.") + "n_averaged"  # of torch's AveragedModel
        names += ["averaged"] if counter in state else []
        yield "/".join(filter(None, names)), {k.removeprefix(prefix): state[k] for k in keys}


def _shapes(tensors: Iterable[Any]) -> list[Any]:
    return [getattr(tensor, "shape", None) for tensor in tensors]


def _other_network(content: Any, nodes: dict[str, Any], name: str) -> dict[str, Tensor]:
    """The first tensors in a file that holds no network of the authors', to say what they are.

    Raises:
        CorruptFileError: when there are none, or they are ours.
    """
    if isinstance(content, dict) and "begin.weight" in content:
        raise CorruptFileError(f"{name!r} is a network of ours already: name the folder it is in")
    for node in nodes.values():
        if (
            isinstance(node, dict)
            and node
            and all(
                isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in node.items()
            )
        ):
            return node
    raise CorruptFileError(
        f"{name!r} holds neither [state_dict, optimizer_state] nor a state_dict, nor a dictionary "
        f"with one in it"
    )


def _step(content: Any) -> int | None:
    """How many steps were trained, by a name for it or as the fourth item of the authors' list."""
    if isinstance(content, (list, tuple)):
        content = {"step": content[3]} if len(content) > 3 else {}
    for name in ("step", "global_step", "iteration"):
        value = content.get(name)
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if type(value) in (int, float) and value >= 0 and value % 1 == 0:
            return int(value)
    return None


def _read(raw: bytes, name: str) -> Any:
    """What is in a file: of safetensors, or of tensors, numbers and text in a pickle."""
    if raw[8:9] == b"{":
        try:
            return parse_safetensors(raw)
        except SafetensorError as error:
            raise CorruptFileError(f"{name!r} is a truncated safetensors file: {error}") from error
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(INERT):
            return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes lead torch's reader into almost any of them
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise CorruptFileError(
                f"{name!r} was refused and not run: it asks for {forbidden[1]}, and a checkpoint "
                f"holds only tensors and numbers"
            ) from error
        raise CorruptFileError(
            f"{name!r} is truncated or was not written by torch.save or safetensors"
        ) from error


class _Nothing:
    """Stands for an object of a pickle that is not needed; does nothing with what it is given."""

    arguments: tuple[Any, ...] = ()
    order: Any = "="

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and state[1:2] in ((">",), ("<",)):
            self.order = state[1]


def _number(kind: _Nothing, raw: bytes = b"") -> Any:
    """A NumPy scalar as a plain number, without NumPy's reader, which trusts what it reads."""
    dtype = np.dtype(str(kind.arguments[0])).newbyteorder(kind.order)
    if dtype.kind not in "biuf" or len(raw) != dtype.itemsize:
        return None
    return np.frombuffer(raw, dtype)[0].item()


INERT: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    *((_Nothing, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_Nothing, name) for name in ("numpy.dtype", "numpy.ndarray", "argparse.Namespace")),
]
"""What may stand in a checkpoint beside tensors, and what becomes of it: numbers, or nothing."""


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dictionary of a `RefineNet`, from one of the authors' `CondRefineNetDilated`.

    Args:
        state: tensors by the authors' names, without `module.`.

    Returns:
        The same numbers in float32, by our names; float32 tensors share their memory with `state`.

    Raises:
        CorruptFileError: when a tensor is missing, unexpected, or of the wrong shape.
    """
    with torch.device("meta"):  # names without memory; the sizes follow once they can be read
        keys = {authors_key(name) for name in RefineNet(channels=2, levels=1).state_dict()}
    missing, unexpected = sorted(keys - state.keys()), sorted(state.keys() - keys)
    if missing or unexpected:
        raise CorruptFileError(
            "these are not the tensors of the authors' CondRefineNetDilated: "
            f"missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    with torch.device("meta"):
        network = RefineNet(**network_size(state))
    ours, misfits = {}, []
    for name, parameter in network.state_dict().items():
        key, kind, expected = authors_key(name), name.rsplit(".", 1)[1], tuple(parameter.shape)
        if kind in THIRDS:
            expected = (expected[0], 3 * expected[1])
        if state[key].shape != expected:
            misfits.append(f"{key} is {tuple(state[key].shape)} and not {expected}")
            continue
        tensor = state[key].chunk(3, dim=1)[THIRDS.index(kind)] if kind in THIRDS else state[key]
        ours[name] = tensor.float()
        if not ours[name].isfinite().all():
            raise CorruptFileError(f"{key} holds NaN or infinity: this network has broken down")
    if misfits:
        raise CorruptFileError(
            "the tensors do not fit begin_conv and normalizer, which give the sizes: "
            f"{_some(list(dict.fromkeys(misfits)))}"
        )
    return ours


def authors_key(name: str) -> str:
    """The tensor of theirs that holds one of ours, `normalizer.embed.weight` for `norm.beta`."""
    module, kind = name.rsplit(".", 1)
    return f"{AUTHORS_MODULES[module]}.{'embed.weight' if kind in THIRDS else kind}"


def network_size(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `RefineNet`, all but the image size, which no tensor tells.

    Raises:
        CorruptFileError: when the first convolution or the last normalization is none.
    """
    first, norm = state["begin_conv.weight"], state["normalizer.embed.weight"]
    if first.ndim != 4 or norm.ndim != 2:
        raise CorruptFileError(
            f"begin_conv.weight has {first.ndim} dimensions and normalizer.embed.weight "
            f"{norm.ndim}; a CondRefineNetDilated has 4 and 2"
        )
    return {"channels": len(first), "image_channels": first.shape[1], "levels": len(norm)}


def configuration(size: dict[str, Any], preset: str, **overrides: Any) -> dict[str, Any]:
    """What a record has to know: the network's sizes, the data, the ends of the ladder.

    Args:
        size: see `network_size`.
        preset, overrides: see `convert`.

    Raises:
        NCSNError: when the network is not one for the preset's images.
        ValueError: for an unknown preset, or an override that does not fit.
    """
    theirs, expected = size["image_channels"], load_config(preset).image_channels
    if theirs != expected:
        raise NCSNError(
            f"the network takes images of {theirs} channels and those of preset {preset!r} have "
            f"{expected}; name the preset that it was trained on"
        )
    known = load_config(preset, **size, **overrides).to_dict()
    names = ("preset", "dataset", "image_size", "sigma_max", "sigma_min")
    config = {name: known[name] for name in names} | size | {"keep_means": True}
    with torch.device("meta"):
        build_network(config)  # refuses an impossible image size
    check_size(config["dataset"], config["image_size"])
    return config


def _module_names() -> dict[str, str]:
    """The authors' name of each convolution and normalization, by ours: the table above.

    A few entries name what neither network has, such as the shortcut of the first block.
    """
    names = {"begin": "begin_conv", "norm": "normalizer", "end": "end_conv"}
    for i in range(8):
        ours, theirs = f"blocks.{i}", f"res{i // 2 + 1}.{i % 2}"
        wrapped = ".conv" if i == 2 else ""
        names[f"{ours}.norm1"] = f"{theirs}.normalize1"
        names[f"{ours}.conv1"] = f"{theirs}.conv1"
        names[f"{ours}.norm2"] = f"{theirs}.normalize2"
        names[f"{ours}.conv2"] = f"{theirs}.conv2{wrapped}"
        names[f"{ours}.shortcut"] = f"{theirs}.shortcut{wrapped}"
    for i in range(4):
        ours, theirs = f"refine.{i}", f"refine{i + 1}"
        for kind in ("norm", "conv"):
            for j in range(2):
                names[f"{ours}.fuse.{kind}s.{j}"] = f"{theirs}.msf.{kind}s.{j}"
                names[f"{ours}.pool.{kind}s.{j}"] = f"{theirs}.crp.{kind}s.{j}"
            for k in range(6):
                unit = f"{k // 2 + 1}_{k % 2 + 1}_{kind}"
                names[f"{ours}.adapt.0.{kind}s.{k}"] = f"{theirs}.adapt_convs.0.{unit}"
                names[f"{ours}.adapt.1.{kind}s.{k}"] = f"{theirs}.adapt_convs.1.{unit}"
                names[f"{ours}.output.{kind}s.{k}"] = f"{theirs}.output_convs.{unit}"
    return names


AUTHORS_MODULES = _module_names()


def _some(words: list[str], limit: int = 3) -> str:
    rest = len(words) - limit
    return (", ".join(words[:limit]) or "none") + (f" and {rest} more" if rest > 0 else "")
