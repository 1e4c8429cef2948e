"""Filling in the unknown part of an image by annealed Langevin dynamics."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ncsn_core._checks import check_unit_range, image_shape_of
from ncsn_core._types import Batch, Ladder, NoiseConditional
from ncsn_core.errors import UnknownNameError
from ncsn_core.parametrizations import denoiser_from_score
from ncsn_core.randomness import normal_like
from ncsn_core.samplers.annealed import steps
from ncsn_core.samplers.langevin import langevin_step
from ncsn_core.samplers.state import SMALLER_STEPS, Callback, State, sampler
from ncsn_core.schedules import langevin_step_sizes

KnownNoise = Literal["level", "step", "none"]


@sampler(SMALLER_STEPS)
def inpaint(
    score: NoiseConditional,
    x: Batch,
    sigmas: Ladder,
    *,
    images: Batch | np.ndarray,
    known: Tensor | np.ndarray,
    known_noise: KnownNoise = "level",
    epsilon: float = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Batch:
    """Inpainting with annealed Langevin dynamics (Song & Ermon 2019, Algorithm 2).

    At each level the known pixels get fresh noise of that level, once: y = images + σᵢ z.  They are
    put in place at the start of the level and after each of its updates, so that the score at
    every unknown pixel is that of an image whose known part is as noisy as the rest.

    At a level the fills follow q_σ given the noised known pixels, averaged over that noise.  This
    is the law of the unknown given the known only as σ vanishes, and a fill that was settled at a
    larger σ keeps what was settled.

    Args:
        score: maps (x `[batch, *shape]`, σ [batch]) to a tensor like x.
        x: where the chains start; only the unknown pixels matter.  Not modified.
        sigmas: the ladder, from the largest noise to the smallest.
        images: of which only the known pixels are used; floats, in [0, 1] for a network of images.
        known: mask, True where a pixel is known, for all images alike; bool, or numbers that are
            only 0 and 1.  Of the shape of one image, or [height, width] for all of its channels.
        known_noise: when the noise of the known pixels is drawn: once a "level", as in Algorithm 2;
            anew at every "step", as in the authors' later code; or "none", which puts them in place
            as they are.
        epsilon: ε of Algorithm 1.
        steps_per_level: T of Algorithm 1.
        denoise: finish with x + σ_L² s(x, σ_L) where unknown and the known pixels where known; one
            more evaluation.  Without it both parts carry noise of about σ_L, as the paper's do.
        generator: source of all noise, on the device of `x`.
        callback: called with a `State` after every update.

    Returns:
        The last samples, not clipped.

    Raises:
        ValueError: for an invalid ladder, ε or T, images of another shape than `x` or in another
            range than [0, 1] for a network of images, a mask that is not one image or says more
            than yes and no, known pixels that are not finite, another `known_noise`, or a score
            that changes the shape.
        FloatingPointError: when a score is not finite, naming σ and the evaluation.
    """
    mask, images = _mask(known, x), torch.as_tensor(images)
    _check(score, x, images, mask, known_noise)
    images = images.to(x)

    def noised(sigma_i: float) -> Tensor:
        if known_noise == "none":
            return images
        return images + sigma_i * normal_like(x, generator)

    alphas = langevin_step_sizes(sigmas, epsilon).tolist()
    for i, (sigma_i, alpha) in enumerate(zip(sigmas.tolist(), alphas, strict=True)):
        sigma = sigmas[i].expand(len(x))
        y = noised(sigma_i)
        x = torch.where(mask, y, x)
        for t in steps(steps_per_level):
            s = score(x, sigma)
            x = langevin_step(x, s, alpha, normal_like(x, generator))
            if known_noise == "step":
                y = noised(sigma_i)
            x = torch.where(mask, y, x)
            if callback is not None:
                callback(State(i, t, sigma_i, alpha, x, s))
    if denoise:
        x = torch.where(mask, images, denoiser_from_score(score)(x, sigma))
    return x


def _mask(known: Tensor | np.ndarray, x: Tensor) -> Tensor:
    """A mask of any type as bool, of the shape of one image of `x`."""
    try:
        mask = torch.as_tensor(known).to(x.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            "a mask is an array or tensor, True where a pixel is known and False where it is to be "
            f"filled in; got {type(known).__name__}"
        ) from error
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "a mask is True (or 1) where a pixel is known and False (or 0) where it is to be "
            f"filled in; this one, {mask.dtype}, holds other values: compare it first, as in "
            f"mask > 0.5"
        )
    if x.ndim == 4 and mask.shape in (x.shape[2:], (1, *x.shape[2:])):
        mask = mask.expand(x.shape[1:])
    if mask.shape != x.shape[1:]:
        raise ValueError(
            f"the mask, True where a pixel is known, has the shape of x without its first axis, "
            f"{tuple(x.shape[1:])}; got {tuple(mask.shape)}"
        )
    return mask.bool()


def _check(score: object, x: Tensor, images: Tensor, mask: Tensor, known_noise: str) -> None:
    """What `inpaint` raises before the first evaluation."""
    if images.shape != x.shape:
        raise ValueError(
            f"the images have the shape of x, {tuple(x.shape)}; got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"the images are floats; got {images.dtype}: ncsn_core.data.to_unit makes them"
        )
    seen = images[:, mask]
    if not torch.isfinite(seen).all():
        raise ValueError("some known pixels are not finite")
    if image_shape_of(score) is not None and seen.numel():
        check_unit_range(seen)
    if known_noise not in get_args(KnownNoise):
        raise UnknownNameError("known_noise", known_noise, get_args(KnownNoise))
