"""From a network that knows level indices to a score that takes σ."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ncsn_core.schedules import validate_ladder


class NoiseConditionalScore(nn.Module):
    """score(x, σ) from network(x, level): the NCSN s_θ(x, σ) of §4.

    The network holds one embedding for each level of its ladder and knows nothing in between, so σ
    must be one of the ladder's values exactly.

    Args:
        network: maps (x `[batch, *shape]`, level index [batch]) to a tensor like x.
        sigmas: the ladder that the indices stand for, [levels].
        conditional: False tells the network index 0 whatever σ is, so that it has to recognize the
            noise level by itself.
        autocast: type to run the network in, such as `torch.bfloat16`; None for float32.  What
            comes out is float32 in each case.

    Raises:
        ValueError: if `sigmas` is not a ladder.
    """

    sigmas: Tensor

    def __init__(
        self,
        network: nn.Module,
        sigmas: Float[Tensor, " levels"],
        *,
        conditional: bool = True,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.conditional = conditional
        self.autocast = autocast
        self.register_buffer("sigmas", validate_ladder(sigmas).clone(), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch *shape"], sigma: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """Scores of `x`, each at its own σ.

        Raises:
            ValueError: when a σ is not on the ladder.
        """
        matches = sigma[:, None] == self.sigmas
        known = matches.any(dim=1)
        if not known.all():
            stranger = sigma[~known][0].item()
            ladder = ", ".join(f"{s:.4g}" for s in self.sigmas.tolist())
            raise ValueError(
                f"sigma = {stranger:.6g} is not a noise level of this network. It was trained at "
                f"{ladder} and does not interpolate; pass values of `score.sigmas`"
            )
        level = matches.to(torch.uint8).argmax(dim=1)
        if not self.conditional:
            level = torch.zeros_like(level)
        if self.autocast is None:
            return self.network(x, level)
        with torch.autocast(x.device.type, self.autocast):
            return self.network(x, level)


class EnergyScore(NoiseConditionalScore):
    """s_θ(x, σ) = −∇ₓ E_θ(x, σ) with E_θ(x, σ) = σ²/2 · ‖f_θ(x, σ)‖²: a score that is a gradient.

    A plain network's output need not be the gradient of anything.  This one is, at the price of a
    backward pass for each evaluation and of a second one to train; Salimans & Ho (2021) compare
    the two.  For one data point μ this E is exact: with f = −(x − μ)/σ², the score of N(μ, σ²I),
    E is the negative log-density and −∇E is f again.

    Args as for `NoiseConditionalScore`, with f_θ for the network.
    """

    def energy(
        self, x: Float[Tensor, "batch *shape"], sigma: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """E_θ(x, σ), −log q_σ(x) up to a constant for each σ.

        Raises:
            ValueError: when a σ is not on the ladder.
        """
        return sigma**2 / 2 * super().forward(x, sigma).flatten(1).square().sum(1)

    def forward(
        self, x: Float[Tensor, "batch *shape"], sigma: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """Scores of `x`, each at its own σ; differentiable once more.

        Raises:
            ValueError: when a σ is not on the ladder.
        """
        return -torch.func.grad(lambda y: self.energy(y, sigma).sum())(x)
