"""Training objectives.  Each returns one loss per sample; average them to train."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ncsn_core.schedules import loss_weight

Score = Callable[[Tensor, Tensor], Tensor]


def multilevel_denoising_score_matching(
    score: Score,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    levels: Int[Tensor, " batch"] | None = None,
    noise: Float[Tensor, "batch *shape"] | None = None,
    weight_power: float = 2.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """Denoising score matching over all noise levels (Song & Ermon 2019, Eqs. 5 and 6).

    For each sample, with z ~ N(0, I), a level σ drawn uniformly from the ladder and x̃ = x + σz,

        λ(σ) · ½ ‖ s(x̃, σ) + (x̃ − x)/σ² ‖²  =  λ(σ) · ½ ‖ s(x̃, σ) + z/σ ‖²,    λ(σ) = σ^power.

    A network that always answers zero scores D/2 in expectation when the power is 2.

    Args:
        score: maps (x̃ [batch, *shape], σ [batch]) to a tensor like x̃.
        x: clean data.
        sigmas: the ladder; lives where `x` lives.
        levels: index of each sample's noise level; drawn uniformly when not given.
        noise: z; drawn from N(0, I) when not given.
        weight_power: exponent of λ; 2 in the paper.
        generator: source of what is drawn; on the device of `x`.

    Returns:
        The loss of each sample, summed over the D dimensions, not averaged.

    Raises:
        ValueError: if `score` answers in another shape than it was asked in.
    """
    if levels is None:
        levels = torch.randint(len(sigmas), (len(x),), device=x.device, generator=generator)
    if noise is None:
        noise = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
    sigma = sigmas[levels]
    column = sigma.reshape(-1, *[1] * (x.ndim - 1))

    predicted = score(x + column * noise, sigma)
    if predicted.shape != x.shape:
        raise ValueError(
            f"a score has the shape of its input, {tuple(x.shape)}; got {tuple(predicted.shape)}"
        )
    residual = predicted + noise / column
    return loss_weight(sigma, weight_power) * 0.5 * residual.square().reshape(len(x), -1).sum(1)
