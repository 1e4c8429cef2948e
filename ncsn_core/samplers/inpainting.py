"""Filling in the unknown part of an image by annealed Langevin dynamics."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

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
    images: Batch,
    known: Bool[Tensor, "*shape"],
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
        images: of which only the known pixels are used.
        known: mask, True where a pixel is known, for all images alike.
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
        ValueError: for an invalid ladder, ε or T, images of another shape than `x`, a mask that
            is not one image, known pixels that are not finite, another `known_noise`, or a score
            that changes the shape.
        FloatingPointError: when a score is not finite, naming σ and the evaluation.
    """
    _check(x, images, known, known_noise)

    def noised(sigma_i: float) -> Tensor:
        if known_noise == "none":
            return images
        return images + sigma_i * normal_like(x, generator)

    alphas = langevin_step_sizes(sigmas, epsilon).tolist()
    for i, (sigma_i, alpha) in enumerate(zip(sigmas.tolist(), alphas, strict=True)):
        sigma = sigmas[i].expand(len(x))
        y = noised(sigma_i)
        x = torch.where(known, y, x)
        for t in steps(steps_per_level):
            s = score(x, sigma)
            x = langevin_step(x, s, alpha, normal_like(x, generator))
            if known_noise == "step":
                y = noised(sigma_i)
            x = torch.where(known, y, x)
            if callback is not None:
                callback(State(i, t, sigma_i, alpha, x, s))
    if denoise:
        x = torch.where(known, images, denoiser_from_score(score)(x, sigma))
    return x


def _check(x: Tensor, images: Tensor, known: Tensor, known_noise: str) -> None:
    """What `inpaint` raises before the first evaluation."""
    if images.shape != x.shape or known.shape != x.shape[1:]:
        raise ValueError(
            f"the images have the shape of x, {tuple(x.shape)}, and the mask that of one image; "
            f"got {tuple(images.shape)} and {tuple(known.shape)}"
        )
    if not torch.isfinite(images[:, known]).all():
        raise ValueError("some known pixels are not finite")
    if known_noise not in get_args(KnownNoise):
        raise UnknownNameError("known_noise", known_noise, get_args(KnownNoise))
