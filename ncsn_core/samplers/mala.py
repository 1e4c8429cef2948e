"""The Metropolis-adjusted Langevin algorithm, which takes back what a finite step gets wrong."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ncsn_core._checks import require
from ncsn_core._types import Batch, LogDensity, PerSample, Score
from ncsn_core.randomness import normal_like
from ncsn_core.samplers.langevin import langevin_step, step_sizes
from ncsn_core.samplers.state import SMALLER_STEPS, Callback, State, sampler
from ncsn_core.schedules import per_sample


class Mala(NamedTuple):
    """The last samples, and how often each chain moved.

    Attributes:
        x: `[batch, *shape]`.
        acceptance: accepted proposals as a fraction of all, [batch].
    """

    x: Tensor
    acceptance: Tensor


@sampler(SMALLER_STEPS)
def mala(
    score: Score,
    x: Batch,
    *,
    log_density: LogDensity,
    epsilon: float | Sequence[float] | Float[Tensor, " steps"] = 0.1,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Mala:
    """Metropolis-adjusted Langevin algorithm (Besag 1994; Roberts & Tweedie 1996).

    Each Langevin update is a proposal y ~ N(x + ε/2 · s(x), εI) =: q(y|x), which is accepted with
    probability min(1, p(y) q(x|y) / (p(x) q(y|x))); otherwise the chain stays where it is.  This
    leaves p invariant whatever ε, and even whatever s: a wrong score costs acceptances and no
    more.

    Args:
        score: maps x `[batch, *shape]` to a tensor like x; the exact one is
            `ncsn_core.parametrizations.score_from_log_density(log_density)`.
        x: where the chains start.  Not modified.
        log_density: maps x to log p(x) [batch], up to a constant (the negative of an energy); −∞
            is allowed where p is 0, except at the start.
        epsilon: ε, one for all steps or one for each.
        steps: T; may be left out when `epsilon` lists the steps.
        generator: source of the proposals and of the decisions, on the device of `x`.
        callback: called with a `State` after every update; `state.accepted` says which moved.

    Returns:
        The last samples, and each chain's acceptance rate.

    Raises:
        ValueError: as for `langevin`, for log-densities that are not one number a chain, and for a
            start of density 0.
        FloatingPointError: when a score or log-density is not a number, naming the evaluation.
    """
    epsilons = step_sizes(epsilon, steps)
    log_density = _checked(log_density)
    log_p, s = log_density(x), score(x)
    moves = torch.zeros(len(x), device=x.device)
    for t, step_size in enumerate(epsilons):
        proposal = langevin_step(x, s, step_size, normal_like(x, generator))
        proposal_log_p = log_density(proposal)
        # There is no score where the density is 0, and no proposal is accepted there.
        possible = per_sample(~proposal_log_p.isneginf(), x)
        proposal_s = score(torch.where(possible, proposal, x))
        forth = log_proposal(proposal, x, s, step_size)
        back = log_proposal(x, proposal, proposal_s, step_size)
        u = torch.rand(len(x), device=x.device, dtype=x.dtype, generator=generator)
        accepted = u.log() < proposal_log_p - log_p + back - forth

        used, moved = s, per_sample(accepted, x)
        x = torch.where(moved, proposal, x)
        s = torch.where(moved, proposal_s, s)
        log_p = torch.where(accepted, proposal_log_p, log_p)
        moves += accepted
        if callback is not None:
            callback(State(0, t, 0.0, step_size, x, used, accepted))
    return Mala(x, moves / len(epsilons))


def log_proposal(y: Tensor, x: Tensor, s: Tensor, epsilon: float) -> PerSample:
    """log q(y|x) = −‖y − x − ε/2 · s(x)‖²/2ε, without the constant that cancels in the ratio."""
    return -(y - x - epsilon / 2 * s).flatten(1).square().sum(1) / (2 * epsilon)


def _checked(log_density: LogDensity) -> LogDensity:
    """The log-density, with checks: of a start with density 0, of shapes, of +∞ and NaN."""
    evaluations = 0

    def checked(x: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        log_p, where = log_density(x), f"evaluation {evaluations}"
        if evaluations == 1 and log_p.isneginf().any():
            raise ValueError("a chain starts where the density is 0; choose another start")
        if log_p.shape != x.shape[:1]:
            raise ValueError(
                f"a log-density gives one number for each of {len(x)} chains; "
                f"got {tuple(log_p.shape)}"
            )
        require(
            ~(log_p.isnan() | log_p.isposinf()).any(),
            lambda: FloatingPointError(f"the log-density is not a number at {where}"),
        )
        return log_p

    return checked
