"""Every sampler and every loss of the library, in each of its ways, on a toy.

What all have to pass goes through `SAMPLERS` and `OBJECTIVES`, and meets a new function as soon as
it is registered.  Its signature says how to call it: an option that `GIVEN` names gets its value,
another keeps its default, and each other value of a `Literal` or a bool is one more case.
"""

import math
from inspect import signature
from typing import Literal, get_args, get_origin

import torch

from ncsn_core import objectives, samplers

LADDER = torch.tensor([1.0, 0.3, 0.1])


def sigma_of(x, ladder=LADDER):
    """A level for each sample that follows it through every shuffle."""
    first = x.flatten(1)[:, 0]
    return ladder.to(x)[(first > 0).long() + (first > 1).long()]


# option → its value for the points x and the ladder, None for a sampler without one
GIVEN = {
    "sigmas": lambda x, sigmas: sigmas,
    "sigma": lambda x, sigmas: sigma_of(x),
    "epsilon": lambda x, sigmas: 0.1 if sigmas is None else 2 * sigmas[-1].item() ** 2,
    "steps": lambda x, sigmas: 3,
    "steps_per_level": lambda x, sigmas: 2,
    "corrector_steps": lambda x, sigmas: 1,
    "target": lambda x, sigmas: torch.neg,
    "log_density": lambda x, sigmas: lambda y: -y.flatten(1).square().sum(1) / 4,
    "images": lambda x, sigmas: x,
    "known": lambda x, sigmas: (torch.arange(math.prod(x.shape[1:])) % 2 == 0).view(x.shape[1:]),
}


class Case:
    """A function in one of its ways, to be called with a score, points and what is to differ.

    It leaves out the ladder or the generator where the function has none, and returns the samples
    alone where there is more.
    """

    def __init__(self, function, **way):
        self.function, self.way = function, way
        self.options = signature(function).parameters
        missing = {name for name, p in self.options.items() if p.default is p.empty}
        missing -= {"score", "x", *GIVEN}
        assert not missing, (
            f"{function.__name__} has no default for {', '.join(sorted(missing))}: give it one, "
            f"or a value for the toy in GIVEN of tests/registry.py"
        )

    def __call__(self, score, x, generator=None, *, sigmas=LADDER, **changes):
        sigmas = sigmas if "sigmas" in self.options else None
        given = {name: find(x, sigmas) for name, find in GIVEN.items() if name in self.options}
        if "generator" in self.options:
            given["generator"] = generator
        found = self.function(score, x, **given | self.way | changes)
        return found if isinstance(found, torch.Tensor) else found.x


def others(option):
    """The values that are cases of their own, beside the default."""
    if get_origin(option.annotation) is Literal:
        return [value for value in get_args(option.annotation) if value != option.default]
    if isinstance(option.default, bool):
        return [not option.default]
    return [None] if option.name == "sigma" and option.default is None else []


def ways(*functions):
    """Name → case, such as "probability_flow" and "probability_flow method=euler"."""
    found = {}
    for function in functions:
        name = function.__name__
        found[name] = Case(function)
        for option in found[name].options.values():
            for value in others(option):
                found[f"{name} {option.name}={value}"] = Case(function, **{option.name: value})
    return found


SAMPLERS = ways(*samplers.SAMPLERS.values())
OBJECTIVES = ways(*objectives.OBJECTIVES.values())
