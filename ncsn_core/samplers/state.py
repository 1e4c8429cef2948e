"""What all samplers share: what they show to a callback, and what they check about a score."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ncsn_core._checks import check_shape, later, require


@dataclass(frozen=True)
class State:
    """What a callback sees after each update; the tensors are never overwritten, so keep them.

    Attributes:
        level: index i of the noise level, from 0; 0 for a sampler without levels.
        step: update t within the level, from 0.
        sigma: σᵢ; 0 for a sampler without levels.
        step_size: of the update, in the letters of the sampler's equation: ε of Langevin dynamics
            and MALA, αᵢ of annealed Langevin dynamics, inpainting and a corrector step, 2ησᵢ² of
            consistent annealing, σᵢ² − σᵢ₊₁² of a predictor step, σᵢ − σᵢ₊₁ of an ODE solver.
        x: the samples after the update, `[batch, *shape]`.
        score: the score that the update used, at the samples *before* it.
        accepted: which chains took their proposal, bool [batch]; None for a sampler that has no
            choice.
    """

    level: int
    step: int
    sigma: float
    step_size: float
    x: Tensor
    score: Tensor
    accepted: Tensor | None = None


Callback = Callable[[State], None]
Sampler = TypeVar("Sampler", bound=Callable[..., Any])

SMALLER_STEPS = "a smaller epsilon may help"
SAMPLERS: dict[str, Callable[..., Any]] = {}  # name → function, of what `sampler` has decorated


def sampler(advice: str = "") -> Callable[[Sampler], Sampler]:
    """A decorator of samplers: what `guarded` does, and a place in `ncsn_core.samplers.SAMPLERS`.

    Whoever goes through them (tests, the API page, mutants) reads in the signature how to call one:
    whether it takes `sigmas`, and what else has no default.
    """

    def decorate(function: Sampler) -> Sampler:
        sample = SAMPLERS[function.__name__] = guarded(advice)(function)
        return sample

    return decorate


def guarded(advice: str = "") -> Callable[[Sampler], Sampler]:
    """A decorator for what asks a score: no gradients, and every answer of the score is checked.

    Tensors that are given besides x, such as noise levels, images and masks, go to its device.

    Args:
        advice: what the user can do about a score that is not finite.
    """

    def decorate(function: Sampler) -> Sampler:
        @functools.wraps(function)
        @torch.no_grad()
        @later()
        def sample(score: Callable[..., Tensor], x: Tensor, *arguments: Any, **options: Any) -> Any:
            arguments = tuple(_beside(x, value) for value in arguments)
            options = {name: _beside(x, value) for name, value in options.items()}
            return function(checked(score, advice), x, *arguments, **options)

        return cast(Sampler, sample)

    return decorate


def _beside(x: Tensor, value: Any) -> Any:
    return value.to(x.device) if isinstance(value, Tensor) else value


def checked(score: Callable[..., Tensor], advice: str = "") -> Callable[..., Tensor]:
    """The score of x, or of x and σ, that raises at an answer of another shape or not finite.

    Raises:
        ValueError: when the shape of an answer is not that of the points.
        FloatingPointError: when it is not finite, saying at which evaluation and σ.
    """
    evaluations = 0

    def checked_score(x: Tensor, *sigma: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        s = score(x, *sigma)
        check_shape(s, x)
        where = f"evaluation {evaluations}"

        def error() -> FloatingPointError:
            level = f" (sigma = {sigma[0].flatten()[0].item():.4g})" if sigma else ""
            hint = f"; {advice}" if advice else ""
            return FloatingPointError(f"the score is not finite at {where}{level}{hint}")

        require(torch.isfinite(s).all(), error)
        return s

    checked_score.network = getattr(score, "network", None)  # type: ignore[attr-defined]
    return checked_score
