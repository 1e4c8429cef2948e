"""What samplers show to a callback, and what they check about a score."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ncsn_core.checks import require
from ncsn_core.divergence import check_shape


@dataclass(frozen=True)
class State:
    """What a callback sees after each update; the tensors are never overwritten, so keep them.

    Attributes:
        level: index i of the noise level, from 0; 0 for a sampler without levels.
        step: update t within the level, from 0.
        sigma: σᵢ; 0 for a sampler without levels.
        alpha: step size αᵢ (the ε of plain Langevin dynamics).
        x: the samples after the update, `[batch, *shape]`.
        score: the score that the update used, at the samples *before* it.
        accepted: which chains took their proposal, bool [batch]; None for a sampler that has no
            choice.
    """

    level: int
    step: int
    sigma: float
    alpha: float
    x: Tensor
    score: Tensor
    accepted: Tensor | None = None


Callback = Callable[[State], None]


SMALLER_STEPS = "a smaller epsilon may help"


def checked(s: Tensor, x: Tensor, where: str, advice: str = "") -> Tensor:
    """Return the score `s` of the points `x`.

    Args:
        where: at which moment, for the message.
        advice: what the user can do about a score that is not finite.

    Raises:
        ValueError: when its shape is not that of `x`.
        FloatingPointError: when it is not finite, saying where.
    """
    check_shape(s, x)
    require(
        torch.isfinite(s).all(),
        lambda: FloatingPointError(
            f"the score is not finite at {where}" + (f"; {advice}" if advice else "")
        ),
    )
    return s


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """z ~ N(0, I), of the shape, device and precision of `x`."""
    return torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
