"""One thing in three forms: a score, a denoiser, a predictor of the noise.

With x̃ = x + σz, a network may be trained to answer with the score s(x̃, σ) of the noised density,
with the mean D(x̃, σ) of the clean data, or with the noise ε(x̃, σ).  Tweedie's formula makes them
one: D = x̃ + σ² s and ε = −σ s.  The samplers of this package take scores; a model of another
library comes to them through these functions.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ncsn_core._types import LogDensity, NoiseConditional, Score
from ncsn_core.schedules import per_sample


def unconditional(score: Score) -> NoiseConditional:
    """s(x, σ) = s(x): a score that is not told the noise level."""
    return lambda x, sigma: score(x)


def score_from_log_density(log_density: LogDensity) -> Score:
    """∇ log p by automatic differentiation, for a log-density that treats its samples one by one.

    An energy becomes a score this way too: `score_from_log_density(lambda x: -energy(x))`.
    """
    return torch.func.grad(lambda x: log_density(x).sum())


def denoiser_from_score(score: NoiseConditional) -> NoiseConditional:
    """D(x, σ) = x + σ² s(x, σ), the mean of the clean data given x (Robbins 1956; Efron 2011)."""

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return x + per_sample(sigma, x) ** 2 * score(x, sigma)

    return denoiser


def score_from_denoiser(denoiser: NoiseConditional) -> NoiseConditional:
    """s(x, σ) = (D(x, σ) − x)/σ²: a model of k-diffusion or EDM, as their samplers call it."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return (denoiser(x, sigma) - x) / per_sample(sigma, x) ** 2

    return score


def score_from_noise(
    predict: NoiseConditional, alphas_cumprod: Float[Tensor, " timesteps"] | None = None
) -> NoiseConditional:
    """s(x, σ) = −ε/σ, from a model that predicts the noise.

    Args:
        predict: maps (x, σ) to ε; or with `alphas_cumprod`, (x, t) as the models of diffusers do.
        alphas_cumprod: ᾱ of each time step of a variance-preserving diffusion, falling in t.  Its
            model sees x √ᾱ, where the noise is σ = √(1/ᾱ − 1), and an integer t: the step whose
            log σ is nearest.  The samplers' levels are best chosen among these σ.
    """
    if alphas_cumprod is None:

        def score(x: Tensor, sigma: Tensor) -> Tensor:
            return -predict(x, sigma) / per_sample(sigma, x)

        return score

    log_sigmas = (1 / alphas_cumprod.cpu().double() - 1).log() / 2
    borders = ((log_sigmas[1:] + log_sigmas[:-1]) / 2).float()

    def score_of_steps(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal borders
        borders = borders.to(x.device)
        t = torch.bucketize(sigma.float().log(), borders)
        column = per_sample(sigma, x)
        return -predict(x * torch.rsqrt(1 + column**2), t) / column

    return score_of_steps
