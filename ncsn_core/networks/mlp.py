"""A plain multilayer perceptron, and several networks trained as one."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ncsn_core._types import PerSample, Points


class MLP(nn.Sequential):
    """Fully connected D → hidden → … → hidden → D: an unconstrained model of a score.

    The default, with D = 2, is the network of Figure 2: 2-128-128-2 with softplus, 17,154
    parameters.  Softplus, because matching scores differentiates the network in its input:
    with ReLU the derivative would be a step function.

    Args:
        dimension: D, the number of coordinates.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        outputs: numbers given out for a point; D when None.
    """

    def __init__(
        self, dimension: int, hidden: int = 128, layers: int = 2, outputs: int | None = None
    ) -> None:
        widths = [dimension, *[hidden] * layers]
        stages: list[nn.Module] = []
        for before, after in pairwise(widths):
            stages += [nn.Linear(before, after), nn.Softplus()]
        super().__init__(*stages, nn.Linear(widths[-1], dimension if outputs is None else outputs))


class ConditionalMLP(nn.Module):
    """A noise-conditional score for toy data: one MLP that is told log σ beside the point.

    s(x, σ) = f(x/√(r² + σ²), log σ)/σ with r the size of the data, so that what goes into f and
    what it has to give are of order 1 at every σ; the division is that of Song & Ermon (2020).
    Unlike the NCSN, which has a row of parameters for each of its levels, it answers for every σ.

    Args:
        dimension: D, the number of coordinates.
        radius: r, the root mean square of the data's coordinates.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
    """

    def __init__(
        self, dimension: int, radius: float = 1.0, hidden: int = 128, layers: int = 2
    ) -> None:
        super().__init__()
        if not (math.isfinite(radius) and radius > 0):
            raise ValueError(f"radius must be positive and finite; got {radius}")
        self.radius = radius
        self.net = MLP(dimension + 1, hidden, layers, outputs=dimension)

    def forward(self, x: Points, sigma: PerSample) -> Points:
        """The score of q_σ at each x, σ one per point."""
        sigma = sigma.unsqueeze(1)
        scaled = x * torch.rsqrt(self.radius**2 + sigma.square())
        return self.net(torch.cat([scaled, sigma.log()], 1)) / sigma


class Ensemble(nn.Module):
    """Networks of one architecture, evaluated and trained at once over stacked parameters.

    To its caller an ensemble is one score: a batch of members × n points goes in, the first n to
    the first member, the next n to the second, and as many points come out.  Each member sees its
    own points only, and Adam acts on each number by itself, so that training the ensemble on the
    sum of the members' losses trains every member as if it were alone.

    Args:
        networks: the members, each with its own initial parameters.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("an ensemble needs at least one network")
        parameters, buffers = stack_module_state(list(networks))
        if buffers:
            raise ValueError("an ensemble cannot stack networks with buffers")
        self.members = len(networks)
        self._names = list(parameters)
        self.stacked = nn.ParameterList(parameters.values())
        # A tuple hides the skeleton from nn.Module: its parameters are not the ensemble's.
        self._skeleton = (copy.deepcopy(networks[0]).to("meta"),)

    @classmethod
    def of(cls, build: Callable[[], nn.Module], seeds: Sequence[int]) -> "Ensemble":
        """One network per seed, from `build` called under that seed of torch's CPU generator."""
        networks = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.default_generator.manual_seed(seed)
                networks.append(build())
        return cls(networks)

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *outputs"]:
        """Evaluate each member at its share of the batch.

        Raises:
            ValueError: for a batch that the members cannot share evenly.
        """
        if len(x) % self.members:
            raise ValueError(f"{len(x)} points cannot be shared by {self.members} members")
        shares = x.reshape(self.members, -1, *x.shape[1:])

        def one(parameters: dict[str, Tensor], points: Tensor) -> Tensor:
            return functional_call(self._skeleton[0], parameters, (points,))

        stacked = dict(zip(self._names, self.stacked, strict=True))
        out = torch.vmap(one)(stacked, shares)
        return out.reshape(len(x), *out.shape[2:])

    def member(self, index: int) -> nn.Module:
        """A copy of one member, as the network that it is."""
        network = copy.deepcopy(self._skeleton[0])
        values = [stack[index].detach().clone() for stack in self.stacked]
        network.load_state_dict(dict(zip(self._names, values, strict=True)), assign=True)
        return network.requires_grad_(False)
