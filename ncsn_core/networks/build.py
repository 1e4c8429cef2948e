"""From a configuration to its network, and from a network to its score."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ncsn_core._types import Ladder
from ncsn_core.networks.refinenet import RefineNet
from ncsn_core.networks.score import ContinuousScore, EnergyScore, NoiseConditionalScore


def build_network(config: Mapping[str, Any]) -> RefineNet:
    """The RefineNet that a configuration describes, freshly initialized."""
    return RefineNet(
        config["channels"],
        config["image_channels"],
        config["image_size"],
        config["levels"] if config.get("conditional", True) else 1,
        keep_means=config["keep_means"],
        normalize=config.get("normalize", True),
        input_range=config.get("input_range", (0.0, 1.0)),
    )


def build_score(
    config: Mapping[str, Any],
    network: nn.Module,
    sigmas: Ladder,
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


def new_score(
    config: Mapping[str, Any], sigmas: Ladder, device: torch.device | str, *, compile: bool = False
) -> NoiseConditionalScore:
    """An untrained score on a device, its weights drawn from the configuration's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config["seed"])
        network = build_network(config)
    network.compile_normalizations(compile)
    return build_score(config, network, sigmas).to(device)
