"""Samplers: from a score to samples.

A sampler moves `x` `[batch, *shape]`, one independent chain an entry, along `score` through the
noise levels `sigmas`, and returns where the chains end; `langevin` and `mala` have a single level.
The randomness comes from `generator` alone, and `callback` sees every update as a `State`.
`solve_probability_flow` and `log_likelihood` choose their own steps and have no callback.

`SAMPLERS` has all that show their updates, by name: `SAMPLERS["annealed_langevin"]`.

A score that is not finite is an error.  On a GPU, where a step does not wait for the answer, it is
noticed within 300 steps, and a callback may have seen some of the samples that follow from it.
"""

from typing import TYPE_CHECKING

from ncsn_core._lazy import names_of

# At once: these two modules have the names of their functions, and would stand in their places.
from ncsn_core.samplers.langevin import langevin as langevin
from ncsn_core.samplers.mala import mala as mala

if TYPE_CHECKING:
    from ncsn_core.samplers.annealed import annealed_langevin as annealed_langevin
    from ncsn_core.samplers.consistent import consistent_annealed as consistent_annealed
    from ncsn_core.samplers.inpainting import inpaint as inpaint
    from ncsn_core.samplers.mala import Mala as Mala
    from ncsn_core.samplers.ode import Likelihood as Likelihood
    from ncsn_core.samplers.ode import Solution as Solution
    from ncsn_core.samplers.ode import log_likelihood as log_likelihood
    from ncsn_core.samplers.ode import probability_flow as probability_flow
    from ncsn_core.samplers.ode import solve_probability_flow as solve_probability_flow
    from ncsn_core.samplers.reverse import reverse_diffusion as reverse_diffusion
    from ncsn_core.samplers.state import SAMPLERS as SAMPLERS
    from ncsn_core.samplers.state import State as State
else:
    __getattr__, __dir__ = names_of(
        __name__,
        {
            "annealed": "annealed_langevin",
            "consistent": "consistent_annealed",
            "inpainting": "inpaint",
            "mala": "Mala",
            "ode": "Likelihood Solution log_likelihood probability_flow solve_probability_flow",
            "reverse": "reverse_diffusion",
            "state": "SAMPLERS State",
        },
        registry="SAMPLERS",
    )
