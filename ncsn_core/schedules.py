"""Noise levels σ₁ > … > σ_L, and with them the loss weight λ(σ) and the step sizes αᵢ."""

import math
from itertools import pairwise
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

Ladder = Float[Tensor, " levels"]

MOST_LEVELS = 100_000  # a mistyped number must not fill the memory


def geometric_ladder(first: float = 1.0, last: float = 0.01, levels: int = 10) -> Ladder:
    """Noise levels in geometric progression, σ₁ = `first` down to σ_L = `last` (§4.1).

    Returns:
        float32 tensor [levels], in the units of the data.

    Raises:
        ValueError: unless first > last > 0 are finite and 2 <= levels <= `MOST_LEVELS`, or
            levels = 1 and first = last.
    """
    if not 1 <= levels <= MOST_LEVELS or int(levels) != levels:
        raise ValueError(
            f"a ladder needs a whole number of levels, 1 to {MOST_LEVELS:,}; got {levels}"
        )
    if not (math.isfinite(first) and math.isfinite(last) and first > 0 and last > 0):
        raise ValueError(f"noise levels must be positive and finite; got {first} and {last}")
    if levels == 1 and first != last:
        raise ValueError(f"a single level has first == last; got {first} and {last}")
    if levels > 1 and first <= last:
        raise ValueError(f"noise levels must decrease: first > last; got {first} and {last}")
    exponents = torch.linspace(math.log(first), math.log(last), levels, dtype=torch.float64)
    return validate_ladder(exponents.exp().float())


def karras_ladder(
    first: float = 8.0, last: float = 0.01, levels: int = 18, power: float = 7.0
) -> Ladder:
    """Noise levels whose `power`-th roots are equally spaced (Karras et al. 2022, Eq. 5).

    Power 1 has steps of one size, and a large power the geometric ladder.  At 7, between the two,
    fewer levels lie next to the data than in the geometric one, which suits an ODE solver.

    Raises:
        ValueError: unless first > last > 0 and 2 <= levels <= `MOST_LEVELS` and power > 0.
    """
    fits = math.isfinite(first) and first > last > 0 and 2 <= levels <= MOST_LEVELS and power > 0
    if not fits:
        raise ValueError(
            f"needs first > last > 0, 2 to {MOST_LEVELS:,} levels and a positive power; "
            f"got {first}, {last}, {levels} and {power}"
        )
    roots = torch.linspace(first ** (1 / power), last ** (1 / power), levels, dtype=torch.float64)
    sigmas = roots.pow(power).float()
    sigmas[0], sigmas[-1] = first, last
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


def variance_left(epsilon: float, last: float, ratio: float, steps: int) -> float:
    """Variance after a level, in units of σᵢ², of chains that came with that of the level before.

    (1 − r)^2T (γ² − q) + q with r = ε/(2σ_L²), q = 2r/(1 − (1 − r)²), for a single data point
    (Song & Ermon 2020, Proposition 3).  1 is what the next level expects.

    Args:
        epsilon: ε in the form of Algorithm 1, twice that of Song & Ermon (2020).
        last: σ_L.
        ratio: γ = σᵢ₋₁/σᵢ.
        steps: T.
    """
    r = epsilon / (2 * last**2)
    q = 2 * r / (1 - (1 - r) ** 2)
    return (1 - r) ** (2 * steps) * (ratio**2 - q) + q


def matched_epsilon(last: float, ratio: float, steps: int) -> float:
    """The ε whose `variance_left` is nearest to 1 (Song & Ermon 2020, Technique 4).

    In the form of Algorithm 1, twice the ε of Song & Ermon (2020).
    """
    candidates = (2 * last**2 * 10 ** (-5 + 5 * i / 20_000) for i in range(20_000))
    return min(candidates, key=lambda epsilon: abs(variance_left(epsilon, last, ratio, steps) - 1))


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


def loss_weight(sigma: Float[Tensor, " *shape"], power: float = 2.0) -> Float[Tensor, " *shape"]:
    """λ(σ) = σ^power, the weight of a level in the training loss (Eq. 6); the paper's power is 2.

    A trained network has ‖s(x, σ)‖ ∝ 1/σ, so power 2 gives every level a loss of one magnitude.
    """
    return sigma**power


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
