"""Samplers: from a score to samples.

They take `(score, x, sigmas, *, ..., generator, callback)`, `langevin` and `mala` without σ, with x
`[batch, *shape]` the starts of as many independent chains.  They draw their randomness from
`generator` alone, leave `x` as it was, show every update to `callback` as a `State`, and never
print.  The two solvers that choose their own steps, at the end of `ode`, have no callback.

A step waits for nothing on a GPU: there a score that is not finite is noticed within 300 steps
(`ncsn_core._checks`), in the same words, and a callback may have seen what came of it.
"""

from typing import TYPE_CHECKING

from ncsn_core._lazy import names_of

# At once: these two modules have the names of their functions, and would stand in their places.
from ncsn_core.samplers.langevin import langevin
from ncsn_core.samplers.mala import Mala, mala

if TYPE_CHECKING:
    from ncsn_core.samplers.annealed import annealed_langevin
    from ncsn_core.samplers.consistent import consistent_annealed
    from ncsn_core.samplers.inpainting import inpaint
    from ncsn_core.samplers.ode import (
        Likelihood,
        Solution,
        log_likelihood,
        probability_flow,
        solve_probability_flow,
    )
    from ncsn_core.samplers.reverse import reverse_diffusion
    from ncsn_core.samplers.state import State
else:
    __getattr__, __dir__ = names_of(
        __name__,
        {
            "annealed": "annealed_langevin",
            "consistent": "consistent_annealed",
            "inpainting": "inpaint",
            "ode": "Likelihood Solution log_likelihood probability_flow solve_probability_flow",
            "reverse": "reverse_diffusion",
            "state": "State",
        },
    )

__all__ = [
    "Likelihood",
    "Mala",
    "Solution",
    "State",
    "annealed_langevin",
    "consistent_annealed",
    "inpaint",
    "langevin",
    "log_likelihood",
    "mala",
    "probability_flow",
    "reverse_diffusion",
    "solve_probability_flow",
]
