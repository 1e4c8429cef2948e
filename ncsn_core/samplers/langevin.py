"""Langevin dynamics, the sampler that needs nothing but a score."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ncsn_core._types import Batch, Score
from ncsn_core.randomness import normal_like
from ncsn_core.samplers.state import SMALLER_STEPS, Callback, State, sampler


@sampler(SMALLER_STEPS)
def langevin(
    score: Score,
    x: Batch,
    *,
    epsilon: float | Sequence[float] | Float[Tensor, " steps"] = 0.1,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Batch:
    """Langevin dynamics without a Metropolis test (Song & Ermon 2019, §2.2, Eq. 4).

    T times:  x ← x + ε/2 · s(x) + √ε · z.  As ε → 0 and εT → ∞ the law of x becomes the density
    that has the score s.  At a finite ε it is another one: for N(0, 1) the variance 1/(1 − ε/4).

    Args:
        score: maps x `[batch, *shape]` to a tensor like x.
        x: where the chains start.  Not modified.
        epsilon: ε, one for all steps or one for each.
        steps: T; may be left out when `epsilon` lists the steps.
        generator: source of z, on the device of `x`.
        callback: called with a `State` after every update.

    Returns:
        The last samples.

    Raises:
        ValueError: for an ε that is not positive and finite, a T below 1 or one that is not the
            length of `epsilon`, or a score of another shape than its input.
        FloatingPointError: when a score is not finite, naming the evaluation.
    """
    epsilons = step_sizes(epsilon, steps)
    for t, step_size in enumerate(epsilons):
        s = score(x)
        x = langevin_step(x, s, step_size, normal_like(x, generator))
        if callback is not None:
            callback(State(0, t, 0.0, step_size, x, s))
    return x


def langevin_step(x: Tensor, s: Tensor, epsilon: float, z: Tensor) -> Tensor:
    """x + ε/2 · s + √ε · z, the update of Eq. 4 and of line 6 of Algorithm 1."""
    return x + epsilon / 2 * s + epsilon**0.5 * z


def step_sizes(epsilon: float | Sequence[float] | Tensor, steps: int | None) -> list[float]:
    """ε of every step, rounded to float32 as those of a ladder are.

    Raises:
        ValueError: for an ε that is not positive and finite, no steps, or two different numbers
            of steps.
    """
    sizes = torch.as_tensor(epsilon, dtype=torch.float32)
    if sizes.ndim == 0:
        if steps is None:
            raise ValueError("a single epsilon needs the number of steps")
        sizes = sizes.expand(max(steps, 0))
    elif steps is not None and steps != len(sizes):
        raise ValueError(f"epsilon lists {len(sizes)} steps, and steps is {steps}")
    if len(sizes) < 1:
        raise ValueError(f"steps must be at least 1; got {len(sizes) if steps is None else steps}")
    if not (torch.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError("epsilon must be positive and finite")
    return sizes.tolist()
