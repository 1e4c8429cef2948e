"""Noise levels σ₁ > … > σ_L, and with them the loss weight λ(σ) and the step sizes αᵢ."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Ladder = Float[Tensor, " levels"]


def geometric_ladder(first: float = 1.0, last: float = 0.01, levels: int = 10) -> Ladder:
    """Noise levels in geometric progression, σ₁ = `first` down to σ_L = `last` (§4.1).

    Returns:
        float32 tensor [levels], in the units of the data.

    Raises:
        ValueError: unless first > last > 0 are finite and levels >= 2, or levels = 1 and
            first = last.
    """
    if levels < 1 or int(levels) != levels:
        raise ValueError(f"a ladder needs a whole number of levels, at least 1; got {levels}")
    if not (math.isfinite(first) and math.isfinite(last) and first > 0 and last > 0):
        raise ValueError(f"noise levels must be positive and finite; got {first} and {last}")
    if levels == 1 and first != last:
        raise ValueError(f"a single level has first == last; got {first} and {last}")
    if levels > 1 and first <= last:
        raise ValueError(f"noise levels must decrease: first > last; got {first} and {last}")
    exponents = torch.linspace(math.log(first), math.log(last), levels, dtype=torch.float64)
    return validate_ladder(exponents.exp().float())


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
