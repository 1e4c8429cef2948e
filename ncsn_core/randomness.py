"""Random number generators that are a function of named integers, so that runs can be resumed."""

import numpy as np
import torch
from torch import Tensor


def generator_for(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose state depends on `seed` and the integers of `stream` alone.

    Training draws the randomness of step k from a generator of `seed` and k, which makes a resumed
    run see the very numbers of an uninterrupted one; nothing but k has to be stored.  NumPy's
    `SeedSequence` mixes the integers, so that neighbors are independent.

    Args:
        seed: the run's seed, at least 0.
        stream: what the numbers are for, each at least 0.
        device: where the generator lives.  Different kinds of device give different numbers.
    """
    state = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """z ~ N(0, I), of the shape, device and precision of `x`."""
    return torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)
