"""Filling in the unknown part of an image by annealed Langevin dynamics."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ncsn_core.errors import UnknownNameError
from ncsn_core.samplers.annealed import annealed_langevin
from ncsn_core.samplers.state import Callback, normal_like

KnownNoise = Literal["level", "step", "none"]


def inpaint(
    score: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "batch *shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    known: Float[Tensor, "batch *shape"],
    mask: Bool[Tensor, "*shape"],
    known_noise: KnownNoise = "level",
    epsilon: float = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Inpainting with annealed Langevin dynamics (Song & Ermon 2019, Algorithm 2).

    At each level the known pixels get fresh noise of that level, once: y = known + σᵢ z.  They are
    put in place at the start of the level and after each of its updates, so that the score at
    every unknown pixel is that of an image whose known part is as noisy as the rest.

    At a level the fills follow q_σ given the noised known pixels, averaged over that noise.  This
    is the law of the unknown given the known only as σ vanishes, and a fill that was settled at a
    larger σ keeps what was settled.

    Args:
        score: maps (x `[batch, *shape]`, σ [batch]) to a tensor like x.
        x: where the chains start; only the unknown pixels matter.  Not modified.
        sigmas: the ladder, from the largest noise to the smallest.
        known: the images, of which only the pixels under `mask` are used.
        mask: True where a pixel is known, for all images alike.
        known_noise: when the noise of the known pixels is drawn: once a "level", as in Algorithm 2;
            anew at every "step", as in the authors' later code; or "none", which puts them in place
            as they are.
        epsilon: ε of Algorithm 1.
        steps_per_level: T.
        denoise: finish with x + σ_L² s(x, σ_L) where unknown and the known pixels where known; one
            more evaluation.  Without it both parts carry noise of about σ_L, as the paper's do.
        generator: source of all noise, on the device of `x`.
        callback: called with a `State` after every update.

    Returns:
        The last samples, not clipped.

    Raises:
        ValueError: for an invalid ladder, ε or T, images of another shape than `x`, a mask that
            is not one image, known pixels that are not finite, another `known_noise`, or a score
            that changes the shape.
        FloatingPointError: when a score is not finite, naming level and step.
    """
    if known.shape != x.shape or mask.shape != x.shape[1:]:
        raise ValueError(
            f"known images have the shape of x, {tuple(x.shape)}, and the mask that of one image; "
            f"got {tuple(known.shape)} and {tuple(mask.shape)}"
        )
    if not torch.isfinite(known[:, mask]).all():
        raise ValueError("some known pixels are not finite")
    if known_noise not in get_args(KnownNoise):
        raise UnknownNameError("known_noise", known_noise, get_args(KnownNoise))

    def hold_known(sigma: float) -> Callable[[Tensor], Tensor]:
        def noised() -> Tensor:
            return known + sigma * normal_like(x, generator)

        if known_noise == "none":
            return lambda x: torch.where(mask, known, x)
        if known_noise == "step":
            return lambda x: torch.where(mask, noised(), x)
        y = noised()
        return lambda x: torch.where(mask, y, x)

    filled = annealed_langevin(
        score,
        x,
        sigmas,
        epsilon=epsilon,
        steps_per_level=steps_per_level,
        denoise=denoise,
        generator=generator,
        callback=callback,
        constraint=hold_known,
    )
    return torch.where(mask, known, filled) if denoise else filled
