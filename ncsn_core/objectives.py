"""Training objectives.  Each returns one loss per sample; average them to train.

All of them are estimates of ½ E‖s(x) − ∇ log p(x)‖² up to a constant, and differ in what they need
to know: the score itself (explicit), the trace of a Jacobian (implicit), its products with random
directions (sliced), two evaluations close by (finite differences), or noise (denoising).

Those that train a noise-conditional score take σ, one per sample, as `ncsn_core.schedules` draws
it: another law of σ, or another weight λ(σ), is another argument and not another loss.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ncsn_core._checks import check_clean, check_finite, check_per_sample, shape_checked
from ncsn_core._types import Batch, Directions, NoiseConditional, PerSample, Score
from ncsn_core.divergence import (
    MEMORY_LIMIT,
    Mode,
    Projection,
    TraceMethod,
    directions,
    exact_divergence,
    quadratic_form,
)
from ncsn_core.randomness import normal_like
from ncsn_core.schedules import loss_weight, per_sample

Weight = Callable[[Tensor], Tensor]
Loss = TypeVar("Loss", bound=Callable[..., Tensor])


OBJECTIVES: dict[str, Callable[..., Tensor]] = {}  # name → loss


def _objective(loss: Loss) -> Loss:
    """Put a loss among the `OBJECTIVES`."""
    OBJECTIVES[loss.__name__] = loss
    return loss


def _checked(loss: Loss) -> Loss:
    """Look at clean data, σ and the shape of the score's answers, so that a loss need not."""

    @functools.wraps(loss)
    def checked(score: NoiseConditional, x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        check_clean(score, x)
        check_per_sample(torch.as_tensor(sigma), x)
        return loss(shape_checked(score), x, sigma, **options)

    return cast(Loss, checked)


@_objective
def explicit_score_matching(score: Score, x: Batch, target: Score) -> PerSample:
    """½ ‖s(x) − ∇ log p(x)‖², the Fisher divergence, when `target` knows ∇ log p (§2.1).

    Raises:
        ValueError: for a point that is not finite, or a score that changes the shape.
    """
    return _half_square(_answer(score, x) - _answer(target, x))


@_objective
def implicit_score_matching(
    score: Score,
    x: Batch,
    *,
    method: TraceMethod = "vmap",
    chunk: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> PerSample:
    """tr ∇s(x) + ½ ‖s(x)‖², with the exact trace (Hyvärinen 2005; §2.1, Eq. 1).

    In expectation the explicit loss minus ½ E‖∇ log p‖², provided that p(x) s(x) vanishes at
    infinity.  Its smallest value is therefore −½ E‖∇ log p‖².

    Args and raises as for `ncsn_core.divergence.exact_divergence`.
    """
    trace = exact_divergence(score, x, method, chunk=chunk, memory_limit=memory_limit)
    return trace + _half_square(score(x))


@_objective
def sliced_score_matching(
    score: Score | NoiseConditional,
    x: Batch,
    sigma: PerSample | None = None,
    *,
    noise: Batch | None = None,
    weight: Weight = loss_weight,
    count: int = 1,
    kind: Projection = "gaussian",
    mode: Mode = "reverse",
    v: Directions | None = None,
    generator: torch.Generator | None = None,
) -> PerSample:
    """SSM: vᵀ∇s(x)v + ½ (vᵀs(x))², averaged over random v (Song et al. 2019).

    With E[v vᵀ] = I its expectation is the implicit loss.  The directions of this package all have
    that scale; a v of length 1 would divide the loss by D.

    Args:
        score: maps a batch to a batch of the same shape, sample by sample; with `sigma` it maps
            (x̃ `[batch, *shape]`, σ [batch]).
        x: data.
        sigma: σ of each sample.  The loss is then λ(σ) times that of s(·, σ) at x̃ = x + σz, the
            other way to train an NCSN (Song & Ermon 2019, §4.2): in expectation it is
            `denoising_score_matching` minus λ(σ) D/(2σ²), which no network changes.
        noise: z, in place of drawing it.
        weight: λ, where there is a σ.
        count: number of directions per sample.
        kind: their law, see `ncsn_core.divergence.projections`.
        mode: see `ncsn_core.divergence.quadratic_form`.
        v: the directions, in place of drawing them.
        generator: source of noise and directions, on the device of `x`.

    Raises:
        ValueError: for a σ that is not one positive number per sample, a count below 1, directions
            of another shape, a point that is not finite, a score that changes the shape; with
            `sigma` and a network of images, data in another range than [0, 1].
    """

    def loss(score: Score, x: Tensor, v: Tensor) -> Tensor:
        s, form = quadratic_form(score, x, v, mode)
        return form + 0.5 * (v * s).flatten(1).sum(1).square()

    return _sliced(loss, score, x, sigma, noise, weight, count, kind, v, generator)


@_objective
def sliced_score_matching_vr(
    score: Score | NoiseConditional,
    x: Batch,
    sigma: PerSample | None = None,
    *,
    noise: Batch | None = None,
    weight: Weight = loss_weight,
    count: int = 1,
    kind: Projection = "gaussian",
    mode: Mode = "reverse",
    v: Directions | None = None,
    generator: torch.Generator | None = None,
) -> PerSample:
    """SSM-VR: vᵀ∇s(x)v + ½ ‖s(x)‖², averaged over random v (Song et al. 2019, §3.2).

    The second term is the expectation of ½ (vᵀs)² over v, taken exactly, which leaves Hutchinson's
    estimate of the trace as the only source of noise beside the data.  The objective that Song &
    Ermon (2019, Eq. 3) call sliced score matching.

    Args and raises as for `sliced_score_matching`.
    """

    def loss(score: Score, x: Tensor, v: Tensor) -> Tensor:
        s, form = quadratic_form(score, x, v, mode)
        return form + _half_square(s)

    return _sliced(loss, score, x, sigma, noise, weight, count, kind, v, generator)


@_objective
def finite_difference_score_matching(
    score: Score | NoiseConditional,
    x: Batch,
    sigma: PerSample | None = None,
    *,
    noise: Batch | None = None,
    weight: Weight = loss_weight,
    step: float = 1e-2,
    count: int = 1,
    kind: Projection = "gaussian",
    v: Directions | None = None,
    generator: torch.Generator | None = None,
) -> PerSample:
    """FD-SSM: SSM-VR with vᵀ∇s v by a central difference along v (Pang et al. 2020).

    With s₊ and s₋ the scores at x ± hv,  vᵀ(s₊ − s₋)/(2h) + ½ ‖(s₊ + s₋)/2‖²: two evaluations, no
    derivative in x, and an error of order h².

    Args:
        step: h, in units of the data: small against the distance over which the score bends, and
            large against the rounding of s, which the difference divides by h.

    The other arguments and what is raised as for `sliced_score_matching`; ValueError also for a
    step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"the step of a finite difference must be positive; got {step}")

    def loss(score: Score, x: Tensor, v: Tensor) -> Tensor:
        ahead, behind = score(x + step * v), score(x - step * v)
        form = (v * (ahead - behind)).flatten(1).sum(1) / (2 * step)
        return form + _half_square((ahead + behind) / 2)

    return _sliced(loss, score, x, sigma, noise, weight, count, kind, v, generator)


@_objective
@_checked
def denoising_score_matching(
    score: NoiseConditional,
    x: Batch,
    sigma: PerSample,
    *,
    noise: Batch | None = None,
    weight: Weight = loss_weight,
    generator: torch.Generator | None = None,
) -> PerSample:
    """λ(σ) · ½ ‖s(x̃, σ) + (x̃ − x)/σ²‖² at x̃ = x + σz, z ~ N(0, I) (Vincent 2011; Eqs. 2, 5, 6).

    Its minimum is the score of the noised density q_σ and not that of p, and its value there is
    not 0 but λ(σ) `denoising_floor`.  With the paper's λ(σ) = σ², a network that always answers
    zero scores D/2 in expectation, at every σ.

    Args:
        score: maps (x̃ `[batch, *shape]`, σ [batch]) to a tensor like x̃; for one that takes no σ see
            `ncsn_core.parametrizations.unconditional`.
        x: clean data.
        sigma: σ of each sample; `ncsn_core.schedules.draw_levels` and `draw_log_uniform` draw it.
        noise: z, in place of drawing it.
        weight: λ; `torch.ones_like` leaves the loss of Eq. 5.
        generator: source of z, on the device of `x`.

    Returns:
        The loss of each sample, summed over the D dimensions, not averaged.

    Raises:
        ValueError: for a σ that is not one positive number per sample, a point that is not finite,
            a score that changes the shape; for a network of images, data in another range than
            [0, 1].
    """
    z = normal_like(x, generator) if noise is None else noise
    column = per_sample(sigma, x)
    return weight(sigma) * _half_square(score(x + column * z, sigma) + z / column)


def denoising_floor(score: NoiseConditional, x: Batch, sigma: PerSample) -> PerSample:
    """½ (D/σ² − ‖∇ log q_σ(x̃)‖²), whose mean over x̃ ~ q_σ is the least denoising loss there is.

    The loss of any score s with λ = 1 is this floor plus ½ E‖s − ∇ log q_σ‖².

    Args:
        score: ∇ log q_σ, maps (x̃, σ).
        x: x̃, drawn from q_σ.
        sigma: σ of each sample.

    Raises:
        ValueError: as for `denoising_score_matching`.
    """
    check_finite(x)
    check_per_sample(torch.as_tensor(sigma), x)
    dimension = math.prod(x.shape[1:])
    return 0.5 * dimension / sigma**2 - _half_square(shape_checked(score)(x, sigma))


def _answer(score: Score, x: Tensor) -> Tensor:
    """s(x), after a look at the points, and at the shape of what the score says of them."""
    check_finite(x)
    return shape_checked(score)(x)


def _half_square(s: Tensor) -> Tensor:
    return 0.5 * s.flatten(1).square().sum(1)


def _sliced(
    loss: Callable[[Score, Tensor, Tensor], Tensor],
    score: Callable[..., Tensor],
    x: Tensor,
    sigma: Tensor | None,
    noise: Tensor | None,
    weight: Weight,
    count: int,
    kind: Projection,
    v: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The mean of a loss over directions v, at the data or, given σ, at the noised data."""
    at = shape_checked(score if sigma is None else lambda y: score(y, sigma))
    if sigma is not None:
        check_clean(score, x)
        check_per_sample(torch.as_tensor(sigma), x)
        z = normal_like(x, generator) if noise is None else noise
        x = x + per_sample(sigma, x) * z
    drawn = directions(x, count, kind, v, generator)
    mean = torch.stack([loss(at, x, w) for w in drawn]).mean(0)
    return mean if sigma is None else weight(sigma) * mean
