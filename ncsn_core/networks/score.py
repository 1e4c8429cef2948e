"""From a network that knows level indices to a score that takes σ: of a ladder, or any."""

import torch
from torch import Tensor, nn

from ncsn_core._checks import require
from ncsn_core._types import Batch, Ladder, PerSample
from ncsn_core.schedules import per_sample, validate_ladder


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
        sigmas: Ladder,
        *,
        conditional: bool = True,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.conditional = conditional
        self.autocast = autocast
        self.register_buffer("sigmas", validate_ladder(sigmas).clone(), persistent=False)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image, for networks that know it.

        Raises:
            TypeError: for others.
        """
        shape = getattr(self.network, "image_shape", None)
        if shape is None:
            raise TypeError(
                f"a {type(self.network).__name__} does not know the shape of its images"
            )
        return shape

    def forward(self, x: Batch, sigma: PerSample) -> Batch:
        """Scores of `x`, each at its own σ.

        Raises:
            ValueError: when a σ is not on the ladder.
        """
        sigma = sigma.to(x.device)
        matches = sigma[:, None] == self.sigmas
        known = matches.any(dim=1)

        def stranger() -> ValueError:
            ladder = ", ".join(f"{s:.4g}" for s in self.sigmas.tolist())
            return ValueError(
                f"sigma = {sigma[~known][0].item():.6g} is not a noise level of this network. It "
                f"was trained at {ladder} and does not interpolate; pass values of `score.sigmas`"
            )

        require(known.all(), stranger)
        level = matches.to(torch.uint8).argmax(dim=1)
        if not self.conditional:
            level = torch.zeros_like(level)
        return self._run(x, level)

    def _run(self, x: Tensor, level: Tensor) -> Tensor:
        """The network at its precision."""
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

    def energy(self, x: Batch, sigma: PerSample) -> PerSample:
        """E_θ(x, σ), −log q_σ(x) up to a constant for each σ.

        Raises:
            ValueError: when a σ is not on the ladder.
        """
        return sigma.to(x.device) ** 2 / 2 * super().forward(x, sigma).flatten(1).square().sum(1)

    def forward(self, x: Batch, sigma: PerSample) -> Batch:
        """Scores of `x`, each at its own σ; differentiable once more.

        Raises:
            ValueError: when a σ is not on the ladder.
        """
        return -torch.func.grad(lambda y: self.energy(y, sigma).sum())(x)


class ContinuousScore(NoiseConditionalScore):
    """s_θ(x, σ) at every σ between the ends of its ladder, as ODE and SDE samplers want it.

    The network's normalizations interpolate, linearly in log σ, between the rows that they hold for
    the ladder's levels.  Around the network F stands the preconditioning of Karras et al. (2022,
    Table 1), written for the score: with μ and s² the mean and variance of the data's pixels and
    c² = 1/(σ² + s²),

        s_θ(x, σ) = −c² (x − μ) + (c s/σ) F(c (x − μ), σ).

    The first term is the exact score of N(μ, (σ² + s²) I).  F has inputs of unit variance, and the
    best F outputs of unit variance, at every σ.

    Args:
        network: as for `NoiseConditionalScore`, and takes fractional indices; its input is mapped
            by 2x − 1, as the RefineNet does.
        sigmas: the ladder; at least two levels, in geometric progression.
        data_mean, data_std: μ and s, in the units of the data.
        autocast: see `NoiseConditionalScore`.

    Raises:
        ValueError: if `sigmas` is not such a ladder, or `data_std` not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        sigmas: Ladder,
        *,
        data_mean: float,
        data_std: float,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(network, sigmas, autocast=autocast)
        if len(sigmas) < 2:
            raise ValueError("a score of continuous sigma needs at least two levels")
        logs = sigmas.cpu().double().log()
        if not torch.allclose(logs.diff(), (logs[-1] - logs[0]) / (len(logs) - 1), atol=1e-4):
            raise ValueError("the levels must be in geometric progression")
        if not data_std > 0:
            raise ValueError(f"data_std must be positive; got {data_std}")
        self.data_mean = data_mean
        self.data_std = data_std

    def forward(self, x: Batch, sigma: PerSample) -> Batch:
        """Scores of `x`, each at its own σ.

        Raises:
            ValueError: when a σ lies beyond the ends of the ladder.
        """
        sigma, sigma_max, sigma_min = sigma.to(x.device), self.sigmas[0], self.sigmas[-1]
        known = (sigma <= sigma_max * (1 + 1e-5)) & (sigma >= sigma_min * (1 - 1e-5))
        require(
            known.all(),
            lambda: ValueError(
                f"sigma = {sigma[~known][0].item():.6g} lies outside of what this network was "
                f"trained for, {sigma_min.item():.4g} to {sigma_max.item():.4g}"
            ),
        )
        level = (sigma / sigma_max).log() / (sigma_min / sigma_max).log() * (len(self.sigmas) - 1)
        column = per_sample(sigma, x)
        c = torch.rsqrt(column**2 + self.data_std**2)
        centered = x - self.data_mean
        f = self._run((1 + c * centered) / 2, level)  # the network maps its input by 2x − 1
        return c * (self.data_std / column * f - c * centered)
