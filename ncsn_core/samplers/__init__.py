"""Samplers: from a score to samples.

All take `(score, x, *, ..., generator, callback)`, with x `[batch, *shape]` the starts of as many
independent chains.  They draw their randomness from `generator` alone, leave `x` as it was, show
every update to `callback` as a `State`, and never print.
"""

from ncsn_core.samplers.annealed import annealed_langevin
from ncsn_core.samplers.inpainting import inpaint
from ncsn_core.samplers.langevin import langevin
from ncsn_core.samplers.mala import Mala, mala, score_of
from ncsn_core.samplers.state import State

__all__ = ["Mala", "State", "annealed_langevin", "inpaint", "langevin", "mala", "score_of"]
