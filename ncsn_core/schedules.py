"""Noise levels: ladders σ₁ > … > σ_L, σ drawn for training, the loss weight λ(σ), step sizes αᵢ."""

import math
from itertools import pairwise
from statistics import NormalDist

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ncsn_core._types import Ladder

MAX_LEVELS = 100_000  # a mistyped number must not fill the memory


def geometric_ladder(sigma_max: float = 1.0, sigma_min: float = 0.01, levels: int = 10) -> Ladder:
    """Noise levels in geometric progression, σ₁ = `sigma_max` down to σ_L = `sigma_min` (§4.1).

    Returns:
        float32 tensor [levels], in the units of the data.

    Raises:
        ValueError: unless sigma_max > sigma_min > 0 are finite and 2 <= levels <= `MAX_LEVELS`, or
            levels = 1 and sigma_max = sigma_min.
    """
    if not 1 <= levels <= MAX_LEVELS or int(levels) != levels:
        raise ValueError(
            f"a ladder needs a whole number of levels, 1 to {MAX_LEVELS:,}; got {levels}"
        )
    if not (
        math.isfinite(sigma_max) and math.isfinite(sigma_min) and sigma_max > 0 and sigma_min > 0
    ):
        raise ValueError(
            f"noise levels must be positive and finite; got {sigma_max} and {sigma_min}"
        )
    if levels == 1 and sigma_max != sigma_min:
        raise ValueError(
            f"a single level has sigma_max == sigma_min; got {sigma_max} and {sigma_min}"
        )
    if levels > 1 and sigma_max <= sigma_min:
        raise ValueError(
            f"noise levels must decrease: sigma_max > sigma_min; got {sigma_max} and {sigma_min}"
        )
    exponents = torch.linspace(
        math.log(sigma_max), math.log(sigma_min), levels, dtype=torch.float64
    )
    return validate_ladder(exponents.exp().float())


def karras_ladder(
    sigma_max: float = 8.0, sigma_min: float = 0.01, levels: int = 18, power: float = 7.0
) -> Ladder:
    """Noise levels whose `power`-th roots are equally spaced (Karras et al. 2022, Eq. 5).

    Power 1 has steps of one size, and a large power the geometric ladder.  At 7, between the two,
    fewer levels lie next to the data than in the geometric one, which suits an ODE solver.

    Raises:
        ValueError: unless sigma_max > sigma_min > 0 and 2 <= levels <= `MAX_LEVELS` and power > 0.
    """
    fits = (
        math.isfinite(sigma_max)
        and sigma_max > sigma_min > 0
        and 2 <= levels <= MAX_LEVELS
        and power > 0
    )
    if not fits:
        raise ValueError(
            f"needs sigma_max > sigma_min > 0, 2 to {MAX_LEVELS:,} levels and a positive power; "
            f"got {sigma_max}, {sigma_min}, {levels} and {power}"
        )
    roots = torch.linspace(
        sigma_max ** (1 / power), sigma_min ** (1 / power), levels, dtype=torch.float64
    )
    sigmas = roots.pow(power).float()
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return validate_ladder(sigmas)


def overlap(ratio: float, dimension: int) -> float:
    """How much two neighboring levels share (Song & Ermon 2020, Proposition 2).

    The radius of noise σ in D dimensions is nearly normal, with mean √D σ and standard deviation
    σ/√2.  Of the radii at one level, this fraction lies within three standard deviations of those
    at the level `ratio` times higher: Φ(√(2D)(γ − 1) + 3γ) − Φ(√(2D)(γ − 1) − 3γ).
    """
    center, width = math.sqrt(2 * dimension) * (ratio - 1), 3 * ratio
    normal = NormalDist()
    return normal.cdf(center + width) - normal.cdf(center - width)


def matched_ratio(dimension: int, share: float = 0.5) -> float:
    """The ratio σᵢ₋₁/σᵢ at which neighboring levels share so much (Song & Ermon 2020, Technique 2).

    Raises:
        ValueError: for a dimension below 8, where two levels always share more than half, or a
            share that is not between 0 and 0.9.
    """
    if dimension < 8 or not 0 < share < 0.9:
        raise ValueError(
            f"needs a dimension of 8 or more and 0 < share < 0.9; got {dimension}, {share}"
        )
    low, high = 1.0, 2.0
    while overlap(high, dimension) > share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(middle, dimension) > share else (low, middle)
    return (low + high) / 2


def variance_left(epsilon: float, sigma_min: float, ratio: float, steps: int) -> float:
    """Variance after a level, in units of σᵢ², of chains that came with that of the level before.

    (1 − r)^2T (γ² − q) + q with r = ε/(2σ_L²), q = 2r/(1 − (1 − r)²), for a single data point
    (Song & Ermon 2020, Proposition 3).  1 is what the next level expects.

    Args:
        epsilon: ε in the form of Algorithm 1, twice that of Song & Ermon (2020).
        sigma_min: σ_L.
        ratio: γ = σᵢ₋₁/σᵢ.
        steps: T, steps at a level.
    """
    r = epsilon / (2 * sigma_min**2)
    q = 2 * r / (1 - (1 - r) ** 2)
    return (1 - r) ** (2 * steps) * (ratio**2 - q) + q


def matched_epsilon(sigma_min: float, ratio: float, steps: int) -> float:
    """The ε whose `variance_left` is nearest to 1 (Song & Ermon 2020, Technique 4).

    In the form of Algorithm 1, twice the ε of Song & Ermon (2020).
    """
    candidates = (2 * sigma_min**2 * 10 ** (-5 + 5 * i / 20_000) for i in range(20_000))
    return min(
        candidates, key=lambda epsilon: abs(variance_left(epsilon, sigma_min, ratio, steps) - 1)
    )


def validate_ladder(sigmas: Tensor) -> Ladder:
    """Return `sigmas` if it is a ladder: one-dimensional, positive, finite, strictly decreasing.

    Raises:
        ValueError: otherwise, naming the first level at fault.
    """
    if sigmas.ndim != 1 or sigmas.numel() == 0:
        raise ValueError(f"a ladder is a list of noise levels; got shape {tuple(sigmas.shape)}")
    values = sigmas.tolist()
    for i, sigma in enumerate(values, start=1):
        if not math.isfinite(sigma) or sigma <= 0:
            raise ValueError(f"noise levels must be positive and finite; level {i} is {sigma}")
    for i, (high, low) in enumerate(pairwise(values), start=2):
        if low >= high:
            raise ValueError(
                f"noise levels must decrease strictly; level {i} is {low} after {high}"
            )
    return sigmas


def draw_levels(
    sigmas: Ladder, count: int, generator: torch.Generator | None = None
) -> Float[Tensor, "{count}"]:
    """σ of each of `count` samples, uniform over the levels of a ladder (Eq. 6), on its device."""
    levels = torch.randint(len(sigmas), (count,), device=sigmas.device, generator=generator)
    return sigmas[levels]


def draw_log_uniform(
    sigma_max: float, sigma_min: float, count: int, generator: torch.Generator | None = None
) -> Float[Tensor, "{count}"]:
    """σ of each of `count` samples, log σ uniform between the ends, on the generator's device.

    The limit of `draw_levels` on a geometric ladder of ever more levels.

    Raises:
        ValueError: unless sigma_max > sigma_min > 0.
    """
    if not sigma_max > sigma_min > 0:
        raise ValueError(f"needs sigma_max > sigma_min > 0; got {sigma_max} and {sigma_min}")
    device = "cpu" if generator is None else generator.device
    u = torch.rand(count, device=device, generator=generator)
    return sigma_min * (sigma_max / sigma_min) ** u


def per_sample(
    sigma: Shaped[Tensor, " batch"], x: Float[Tensor, "batch *shape"]
) -> Shaped[Tensor, "batch ..."]:
    """One number a sample, [batch], as [batch, 1, …, 1]: with it, σ · x is σ times each sample."""
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def loss_weight(sigma: Float[Tensor, " *shape"], power: float = 2.0) -> Float[Tensor, " *shape"]:
    """λ(σ) = σ^power, the weight of a level in the training loss (Eq. 6); the paper's power is 2.

    A trained network has ‖s(x, σ)‖ ∝ 1/σ, so power 2 gives every level a loss of one magnitude.
    """
    return sigma**power


def denoiser_weight(sigma: Float[Tensor, " *shape"], data_std: float) -> Float[Tensor, " *shape"]:
    """λ(σ) = σ² (σ² + s²)/s², with s the standard deviation of the data (Karras et al. 2022, §5).

    With σ² alone, levels far above s would count for nothing: there the best denoiser answers with
    the data's mean, and what it gets wrong is of size s and not σ.  This λ makes the loss the mean
    square of a preconditioned network's error, see `ncsn_core.networks.ContinuousScore`.

    Raises:
        ValueError: unless data_std > 0.
    """
    if not data_std > 0:
        raise ValueError(f"needs a positive data_std; got {data_std}")
    return sigma**2 * (sigma**2 + data_std**2) / data_std**2


def langevin_step_sizes(sigmas: Ladder, epsilon: float) -> Ladder:
    """αᵢ = ε σᵢ² / σ_L², the step sizes of annealed Langevin dynamics (Algorithm 1, line 3).

    `epsilon` is Algorithm 1's: the update is x + α/2 · s + √α · z.  The authors' code writes
    x + α s + √(2α) z, so that its 2e-5 is ε = 4e-5 here.

    Raises:
        ValueError: for an invalid ladder or an ε that is not positive and finite.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon must be positive and finite; got {epsilon}")
    validate_ladder(sigmas)
    return epsilon * (sigmas / sigmas[-1]) ** 2
