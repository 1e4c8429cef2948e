"""Training objectives.  Each returns one loss per sample; average them to train.

All of them are estimates of ½ E‖s(x) − ∇ log p(x)‖² up to a constant, and differ in what they need
to know: the score itself (explicit), the trace of a Jacobian (implicit), its products with random
directions (sliced), two evaluations close by (finite differences), or noise (denoising).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ncsn_core.divergence import (
    MEMORY_LIMIT,
    Mode,
    Projection,
    TraceMethod,
    check_finite,
    directions,
    exact_divergence,
    quadratic_form,
    shape_checked,
)
from ncsn_core.schedules import loss_weight

Score = Callable[[Tensor], Tensor]
NoiseConditional = Callable[[Tensor, Tensor], Tensor]
Batch = Float[Tensor, "batch *shape"]
PerSample = Float[Tensor, " batch"]
Directions = Float[Tensor, "count batch *shape"]


def explicit_score_matching(score: Score, x: Batch, target: Score) -> PerSample:
    """½ ‖s(x) − ∇ log p(x)‖², the Fisher divergence, when `target` knows ∇ log p (§2.1).

    Raises:
        ValueError: for a point that is not finite, or a score that changes the shape.
    """
    check_finite(x)
    return _half_square(shape_checked(score)(x) - shape_checked(target)(x))


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


def sliced_score_matching(
    score: Score,
    x: Batch,
    *,
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
        score: maps a batch to a batch of the same shape, sample by sample.
        x: data.
        count: number of directions per sample.
        kind: their law, see `ncsn_core.divergence.projections`.
        mode: see `ncsn_core.divergence.quadratic_form`.
        v: the directions, in place of drawing them.
        generator: source of the directions, on the device of `x`.

    Raises:
        ValueError: for a count below 1, directions of another shape, a point that is not finite,
            a score that changes the shape.
    """

    def loss(w: Tensor) -> Tensor:
        s, form = quadratic_form(score, x, w, mode)
        return form + 0.5 * (w * s).flatten(1).sum(1).square()

    return _averaged(loss, x, count, kind, v, generator)


def sliced_score_matching_vr(
    score: Score,
    x: Batch,
    *,
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

    def loss(w: Tensor) -> Tensor:
        s, form = quadratic_form(score, x, w, mode)
        return form + _half_square(s)

    return _averaged(loss, x, count, kind, v, generator)


def finite_difference_score_matching(
    score: Score,
    x: Batch,
    *,
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
    checked = shape_checked(score)

    def loss(w: Tensor) -> Tensor:
        ahead, behind = checked(x + step * w), checked(x - step * w)
        form = (w * (ahead - behind)).flatten(1).sum(1) / (2 * step)
        return form + _half_square((ahead + behind) / 2)

    return _averaged(loss, x, count, kind, v, generator)


def denoising_score_matching(
    score: Score,
    x: Batch,
    sigma: float,
    *,
    noise: Batch | None = None,
    generator: torch.Generator | None = None,
) -> PerSample:
    """½ ‖s(x̃) + (x̃ − x)/σ²‖² at x̃ = x + σz, z ~ N(0, I) (Vincent 2011; §2.1, Eq. 2).

    Its minimum is the score of the noised density q_σ and not that of p, and its value there is
    not 0 but `denoising_floor`.

    Args:
        score: maps a batch to a batch of the same shape.
        x: clean data.
        sigma: σ.
        noise: z, in place of drawing it.
        generator: source of z, on the device of `x`.

    Raises:
        ValueError: for a σ that is not positive, a point that is not finite, a score that changes
            the shape.
    """
    if not sigma > 0:
        raise ValueError(f"denoising needs a positive sigma; got {sigma}")
    check_finite(x)
    if noise is None:
        noise = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
    return _half_square(shape_checked(score)(x + sigma * noise) + noise / sigma)


def denoising_floor(noised: Batch, sigma: float, target: Score) -> PerSample:
    """½ (D/σ² − ‖∇ log q_σ(x̃)‖²), whose mean over x̃ ~ q_σ is the least denoising loss there is.

    The loss of any score s is this floor plus ½ E‖s − ∇ log q_σ‖².

    Args:
        noised: x̃, drawn from q_σ.
        sigma: σ.
        target: ∇ log q_σ.

    Raises:
        ValueError: for a σ that is not positive, a point that is not finite, a target that changes
            the shape.
    """
    if not sigma > 0:
        raise ValueError(f"denoising needs a positive sigma; got {sigma}")
    check_finite(noised)
    dimension = math.prod(noised.shape[1:])
    return 0.5 * dimension / sigma**2 - _half_square(shape_checked(target)(noised))


def multilevel_denoising_score_matching(
    score: NoiseConditional,
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
        score: maps (x̃ `[batch, *shape]`, σ [batch]) to a tensor like x̃.
        x: clean data.
        sigmas: the ladder; lives where `x` lives.
        levels: index of each sample's noise level; drawn uniformly when not given.
        noise: z; drawn from N(0, I) when not given.
        weight_power: exponent of λ; 2 in the paper.
        generator: source of what is drawn; on the device of `x`.

    Returns:
        The loss of each sample, summed over the D dimensions, not averaged.

    Raises:
        ValueError: for a score that changes the shape.
    """
    sigma = _sigma_of(x, sigmas, levels, generator)
    noised, target = _noised(x, sigma, noise, generator)
    predicted = shape_checked(lambda y: score(y, sigma))(noised)
    return loss_weight(sigma, weight_power) * _half_square(predicted + target)


def continuous_denoising_score_matching(
    score: NoiseConditional,
    x: Float[Tensor, "batch *shape"],
    ends: tuple[float, float],
    *,
    data_std: float,
    sigma: PerSample | None = None,
    noise: Float[Tensor, "batch *shape"] | None = None,
    generator: torch.Generator | None = None,
) -> PerSample:
    """Denoising score matching over every σ between two ends (Karras et al. 2022, §5).

    The loss of `multilevel_denoising_score_matching` with log σ uniform between the ends, and
    λ(σ) = σ² (σ² + s²)/s², where s is the standard deviation of the data.  With σ² alone, as in the
    ladder of the paper, levels far above s would count for nothing: there the best denoiser answers
    with the data's mean, and what it gets wrong is of size s and not σ.  This λ makes it the mean
    square of a preconditioned network's error, see `ncsn_core.networks.ContinuousScore`.

    Args:
        score: maps (x̃ `[batch, *shape]`, σ [batch]) to a tensor like x̃.
        x: clean data.
        ends: the largest and the smallest σ.
        data_std: s, in the units of the data.
        sigma: σ of each sample; drawn when not given.
        noise: z; drawn from N(0, I) when not given.
        generator: source of what is drawn; on the device of `x`.

    Raises:
        ValueError: unless first > last > 0 and data_std > 0, or for a score that changes the shape.
    """
    first, last = ends
    if not (first > last > 0 and data_std > 0):
        raise ValueError(
            f"needs ends first > last > 0 and a positive data_std; got {ends} and {data_std}"
        )
    if sigma is None:
        u = torch.rand(len(x), device=x.device, generator=generator)
        sigma = last * (first / last) ** u
    noised, target = _noised(x, sigma, noise, generator)
    predicted = shape_checked(lambda y: score(y, sigma))(noised)
    weight = sigma**2 * (sigma**2 + data_std**2) / data_std**2
    return weight * _half_square(predicted + target)


def multilevel_sliced_score_matching(
    score: NoiseConditional,
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    levels: Int[Tensor, " batch"] | None = None,
    noise: Float[Tensor, "batch *shape"] | None = None,
    v: Directions | None = None,
    weight_power: float = 2.0,
    mode: Mode = "reverse",
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """SSM-VR over all noise levels, the other way to train an NCSN (Song & Ermon 2019, §4.2).

    λ(σ) · [vᵀ∇s(x̃, σ)v + ½ ‖s(x̃, σ)‖²] at x̃ = x + σz.  In expectation it is
    `multilevel_denoising_score_matching` minus λ(σ) D/(2σ²), which no network changes.

    Args and raises as for `multilevel_denoising_score_matching` and `sliced_score_matching_vr`.
    """
    sigma = _sigma_of(x, sigmas, levels, generator)
    noised, _ = _noised(x, sigma, noise, generator)
    loss = sliced_score_matching_vr(
        lambda y: score(y, sigma), noised, v=v, mode=mode, generator=generator
    )
    return loss_weight(sigma, weight_power) * loss


def _sigma_of(
    x: Tensor, sigmas: Tensor, levels: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """σ of each sample [batch], at the given levels or at some drawn uniformly."""
    if levels is None:
        levels = torch.randint(len(sigmas), (len(x),), device=x.device, generator=generator)
    return sigmas[levels]


def _noised(
    x: Tensor, sigma: Tensor, noise: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """x̃ = x + σz and z/σ, each sample with its own σ; z is drawn when not given."""
    if noise is None:
        noise = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
    column = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return x + column * noise, noise / column


def _half_square(s: Tensor) -> Tensor:
    return 0.5 * s.flatten(1).square().sum(1)


def _averaged(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    count: int,
    kind: Projection,
    v: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The mean of a loss over the given directions, or over `count` new ones."""
    return torch.stack([loss(w) for w in directions(x, count, kind, v, generator)]).mean(0)
