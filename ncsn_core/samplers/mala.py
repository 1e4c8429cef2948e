"""The Metropolis-adjusted Langevin algorithm, which takes back what a finite step gets wrong."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ncsn_core.checks import later, require
from ncsn_core.samplers.langevin import langevin_step, step_sizes
from ncsn_core.samplers.state import SMALLER_STEPS, Callback, State, checked, normal_like

LogDensity = Callable[[Tensor], Tensor]


class Mala(NamedTuple):
    """The last samples, and how often each chain moved.

    Attributes:
        x: `[batch, *shape]`.
        acceptance: accepted proposals as a fraction of all, [batch].
    """

    x: Tensor
    acceptance: Tensor


@torch.no_grad()
@later()
def mala(
    score: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch *shape"],
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
        score: maps x `[batch, *shape]` to a tensor like x; see `score_of` for the exact one.
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
        FloatingPointError: when a score or log-density is not a number, naming the step.
    """
    epsilons = step_sizes(epsilon, steps)
    log_p = _checked_density(log_density(x), x, "the start")
    if log_p.isneginf().any():
        raise ValueError("a chain starts where the density is 0; choose another start")
    s = checked(score(x), x, "the start")
    moves = torch.zeros(len(x), device=x.device)
    for t, step_size in enumerate(epsilons):
        where = f"step {t + 1} of {len(epsilons)}"
        proposal = langevin_step(x, s, step_size, normal_like(x, generator))
        proposal_log_p = _checked_density(log_density(proposal), x, where)
        possible = per_chain(~proposal_log_p.isneginf(), x)
        proposal_s = checked(torch.where(possible, score(proposal), 0.0), x, where, SMALLER_STEPS)
        forth = log_proposal(proposal, x, s, step_size)
        back = log_proposal(x, proposal, proposal_s, step_size)
        u = torch.rand(len(x), device=x.device, dtype=x.dtype, generator=generator)
        accepted = u.log() < proposal_log_p - log_p + back - forth

        used, moved = s, per_chain(accepted, x)
        x = torch.where(moved, proposal, x)
        s = torch.where(moved, proposal_s, s)
        log_p = torch.where(accepted, proposal_log_p, log_p)
        moves += accepted
        if callback is not None:
            callback(State(0, t, 0.0, step_size, x, used, accepted))
    return Mala(x, moves / len(epsilons))


def log_proposal(y: Tensor, x: Tensor, s: Tensor, epsilon: float) -> Float[Tensor, " batch"]:
    """log q(y|x) = −‖y − x − ε/2 · s(x)‖²/2ε, without the constant that cancels in the ratio."""
    return -(y - x - epsilon / 2 * s).flatten(1).square().sum(1) / (2 * epsilon)


def score_of(log_density: LogDensity) -> Callable[[Tensor], Tensor]:
    """∇ log p by automatic differentiation, for a log-density that treats its samples one by one.

    Any differentiable energy becomes a score this way: `score_of(lambda x: -energy(x))`.
    """
    return torch.func.grad(lambda x: log_density(x).sum())


def per_chain(mask: Bool[Tensor, " batch"], x: Tensor) -> Tensor:
    """The mask with as many dimensions as `x`."""
    return mask.reshape(-1, *[1] * (x.ndim - 1))


def _checked_density(log_p: Tensor, x: Tensor, where: str) -> Tensor:
    if log_p.shape != x.shape[:1]:
        raise ValueError(
            f"a log-density gives one number for each of {len(x)} chains; got {tuple(log_p.shape)}"
        )
    require(
        ~(log_p.isnan() | log_p.isposinf()).any(),
        lambda: FloatingPointError(f"the log-density is not a number at {where}"),
    )
    return log_p
