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

Every key of theirs may carry the prefix `module.` of a network that ran on several GPUs.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ncsn_core.checkpoints as checkpoints
import ncsn_core.provenance as provenance
from ncsn_core.config import load_config
from ncsn_core.errors import CorruptFileError, NCSNError
from ncsn_core.networks.build import build_network
from ncsn_core.networks.refinenet import RefineNet
from ncsn_core.pretrained import Model, model

THIRDS = ("gamma", "alpha", "beta")  # of the authors' `embed.weight`, from left to right


def convert(
    source: Path | str,
    folder: Path | str,
    preset: str,
    *,
    image_size: int | None = None,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
) -> Model:
    """Write a checkpoint of the authors' code as a record, without running anything in it.

    What the file tells is read from it: channels, image channels, number of noise levels.  The
    rest is the preset's: the data set, the size of its images, both ends of the noise ladder.  How
    the network was trained is in neither, and the record does not say it either.

    Args:
        source: the authors' file.
        folder: where the record goes; must not hold one already.
        preset: the data that the network was trained on, see `ncsn_core.config.presets`.
        image_size, sigma_max, sigma_min: when they are not the preset's.

    Raises:
        CorruptFileError: when `source` is no such checkpoint.
        NCSNError: when the network is not one for the preset's images, or `folder` is taken.
        ValueError: for an unknown preset, or a size or noise level that does not fit.
    """
    source, folder = Path(source), Path(folder)
    if (folder / checkpoints.MANIFEST).exists():
        raise NCSNError(f"{folder.name!r} already holds a checkpoint; choose another folder")
    raw = source.read_bytes()
    state = read_state(raw, source.name)
    weights = from_authors(state)
    given = {"image_size": image_size, "sigma_max": sigma_max, "sigma_min": sigma_min}
    overrides = {name: value for name, value in given.items() if value is not None}
    config = configuration(network_size(state), preset, **overrides)
    origin = {"file": source.name, "sha256": hashlib.sha256(raw).hexdigest()}
    record = checkpoints.save(
        folder,
        {"weights": weights},
        kind="ncsn",
        config=config,
        step=None,
        metrics={},
        history={},
        provenance={"commit": provenance.commit(), "converted_from": origin},
    )
    return model(record)


def read_state(raw: bytes, name: str) -> dict[str, Tensor]:
    """The network's tensors in what `torch.save` wrote, by the authors' names without `module.`.

    Either `[state_dict, optimizer_state]`, of which the second is left alone, or a bare state_dict.
    A pickle that would run code is refused before it does.

    Args:
        raw: the file's bytes.
        name: what to call it in a message.

    Raises:
        CorruptFileError: when there is no such thing in it.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # the errors below say it in one line
            loaded = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes lead torch's reader into almost any of them
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise CorruptFileError(
                f"{name!r} was refused and not run: it asks for {forbidden[1]}, and a checkpoint "
                f"holds only tensors and numbers"
            ) from error
        raise CorruptFileError(f"{name!r} is truncated or was not written by torch.save") from error
    state = loaded[0] if isinstance(loaded, (list, tuple)) and loaded else loaded
    if not (
        isinstance(state, dict)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ):
        raise CorruptFileError(
            f"{name!r} holds neither [state_dict, optimizer_state] nor a state_dict"
        )
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


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
