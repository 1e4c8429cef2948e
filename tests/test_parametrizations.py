"""Score, denoiser and predictor of the noise, and the models of other libraries, in every sampler.

The stand-ins answer as a k-diffusion or EDM denoiser and as a diffusers model of the noise do, for
Gaussian data: what they should say, and where each sampler should end, is known in closed form.
"""

import functools
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from scores import cases, network, one_level, points

from ncsn_core.objectives import denoising_score_matching
from ncsn_core.parametrizations import (
    denoiser_from_score,
    score_from_denoiser,
    score_from_noise,
    unconditional,
)
from ncsn_core.randomness import generator_for
from ncsn_core.samplers import (
    annealed_langevin,
    consistent_annealed,
    inpaint,
    langevin,
    log_likelihood,
    mala,
    probability_flow,
    reverse_diffusion,
    solve_probability_flow,
)
from ncsn_core.schedules import geometric_ladder, per_sample

MEAN, SPREAD = 0.6, 0.5  # of the Gaussian data N(MEAN, SPREAD² I) of this module
COUNT = 4000


def exact(x, sigma):
    """∇ log q_σ."""
    return (MEAN - x) / (SPREAD**2 + per_sample(sigma, x) ** 2)


def normal(sigma):
    return torch.distributions.Normal(MEAN, (SPREAD**2 + sigma**2) ** 0.5)


def log_density(x, sigma):
    return normal(sigma).log_prob(x).flatten(1).sum(1)


# --- the conventions of the libraries ------------------------------------------------------------


def edm_denoiser(x, sigma):
    """D(x, sigma) as k-diffusion's samplers call a model, with one sigma for each sample."""
    assert sigma.shape == (len(x),)
    sigma = per_sample(sigma, x)
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def noise_model(x, sigma):
    """ε(x, σ), the mean of the noise z in x = clean + σz."""
    assert sigma.shape == (len(x),)
    sigma = per_sample(sigma, x)
    return sigma * (x - MEAN) / (SPREAD**2 + sigma**2)


class Scheduler:
    """As much of a diffusers scheduler as is asked for: ᾱ of its linear schedule of β."""

    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)


class Unet:
    """ε of a variance-preserving diffusion: from x_t = √ᾱ clean + √(1 − ᾱ) ε and a whole t."""

    def __call__(self, x, t):
        assert t.dtype == torch.int64
        assert t.shape == (len(x),)
        kept = per_sample(Scheduler.alphas_cumprod.to(x)[t], x)
        variance = kept * SPREAD**2 + 1 - kept
        return (1 - kept).sqrt() * (x - kept.sqrt() * MEAN) / variance


unet, scheduler = Unet(), Scheduler()
MODELS = {
    "k-diffusion and EDM": score_from_denoiser(edm_denoiser),
    "noise": score_from_noise(noise_model),
    "diffusers": score_from_noise(unet, scheduler.alphas_cumprod),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())

# Of the noise levels that the scheduler knows, those nearest to a geometric ladder.
KNOWN = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()
NEAREST = (KNOWN.log() - geometric_ladder(10.0, 0.02, 60).double().log()[:, None]).abs().argmin(1)
SIGMAS = KNOWN[NEAREST.unique()].flip(0)
HIGH, LOW = SIGMAS[0].item(), SIGMAS[-1].item()


# --- from one form to the other ------------------------------------------------------------------


@given(cases())
def test_score_and_denoiser_are_each_others_inverse(case):
    inner, x = case
    sigma = torch.rand(len(x), generator=generator_for(0)).to(x) + 0.1

    def model(x, sigma):
        return inner(x) / per_sample(sigma, x)

    there = score_from_denoiser(denoiser_from_score(model))
    back = denoiser_from_score(score_from_denoiser(model))
    torch.testing.assert_close(there(x, sigma), model(x, sigma))
    torch.testing.assert_close(back(x, sigma), model(x, sigma))


@given(cases())
def test_forms_are_tweedies_formulas(case):
    """D = x + σ² s and ε = −σ s, one sample after another, each with its own σ."""
    inner, x = case
    sigma = torch.rand(len(x), generator=generator_for(0)).to(x) + 0.1
    s, model = inner(x), unconditional(inner)
    clean = denoiser_from_score(model)(x, sigma)
    of_noise, of_denoiser = score_from_noise(model)(x, sigma), score_from_denoiser(model)(x, sigma)
    for i, level in enumerate(sigma):
        torch.testing.assert_close(clean[i], x[i] + level**2 * s[i])
        torch.testing.assert_close(of_noise[i], -s[i] / level)
        torch.testing.assert_close(of_denoiser[i], (s[i] - x[i]) / level**2)


def test_a_score_without_sigma_gives_one_answer_at_every_sigma():
    inner, x = network((3,)), points(4, (3,))
    score = unconditional(inner)
    for sigma in (0.1, 10.0):
        assert torch.equal(score(x, one_level(x, sigma)), inner(x))


@every_model
def test_a_model_of_another_library_is_the_exact_score_at_the_levels_it_knows(model):
    x = MEAN + 3 * points(len(KNOWN), (2,))
    torch.testing.assert_close(model(x, KNOWN), exact(x, KNOWN), rtol=1e-4, atol=1e-6)


@every_model
@pytest.mark.parametrize("shape", [(1,), (4,), (1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_of_any_shape_keep_their_precision(model, shape, dtype):
    x, sigma = points(3, shape, dtype=dtype), SIGMAS[:3].to(dtype)
    got = model(x, sigma)
    assert got.dtype == dtype
    torch.testing.assert_close(got, exact(x, sigma), rtol=1e-3, atol=1e-5)


# --- a model that knows time steps ---------------------------------------------------------------


def test_a_model_of_time_steps_is_asked_for_the_nearest_in_log_sigma():
    """ᾱ = 1/(1 + σ²) for σ = 0.1, 1, 10, so that √(0.1 · 1) = 0.316 and 3.16 are the borders."""
    asked = []

    def predict(x, t):
        asked.extend(t.tolist())
        return x

    alphas_cumprod = 1 / (1 + torch.tensor([0.1, 1.0, 10.0]) ** 2)
    sigma = torch.tensor([0.001, 0.1, 0.31, 0.32, 1.0, 3.1, 3.2, 10.0, 500.0])
    score_from_noise(predict, alphas_cumprod)(torch.ones(9, 2), sigma)
    assert asked == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_model_of_time_steps_sees_what_a_diffusion_that_keeps_the_variance_gives_it():
    """x √ᾱ = x/√(1 + σ²), also between two steps, and its ε is that of the noise of x."""
    seen = []

    def predict(x, t):
        seen.append(x)
        return torch.full_like(x, 3.0)

    x = points(4, (2, 2))
    sigma = torch.tensor([0.02, 0.7, 3.0, 100.0]).double()
    got = score_from_noise(predict, scheduler.alphas_cumprod)(x, sigma)
    for i, level in enumerate(sigma):
        torch.testing.assert_close(seen[0][i], x[i] / (1 + level**2).sqrt())
        torch.testing.assert_close(got[i], torch.full_like(x[i], -3.0 / level))


def test_a_model_of_time_steps_is_near_the_exact_score_between_two_of_them():
    middle = (KNOWN[100:-1] * KNOWN[101:]).sqrt()
    x = MEAN + SPREAD * points(len(middle), (2,))
    got, expected = MODELS["diffusers"](x, middle), exact(x, middle)
    assert not torch.equal(got, expected)
    assert ((got - expected).norm(dim=1) < 0.03 * expected.abs().max()).all()


# --- every sampler, in one line ------------------------------------------------------------------


def drawn(sigma):
    """Points of the noised data, each sampler's start and, without noise, what it should give."""
    torch.manual_seed(1)
    return normal(sigma).sample((COUNT, 2)).double()


def below_the_spread(eta):
    """The standard deviation that consistent annealing leaves of spread-out data, step by step."""
    variance = SPREAD**2 + HIGH**2
    for high, low in pairwise([*SIGMAS.tolist(), 0.0]):
        kept = 1 - eta * high**2 / (SPREAD**2 + high**2)
        variance = kept**2 * variance + max(low**2 - ((1 - eta) * high) ** 2, 0.0)
    return variance**0.5 * SPREAD**2 / (SPREAD**2 + LOW**2)


ETA = 0.5
LANGEVIN = {"epsilon": 0.4 * LOW**2, "steps_per_level": 6, "denoise": True}
FIRST = torch.tensor([True, False])  # of two pixels is known
RUN = {
    "annealed": lambda s, x, g: annealed_langevin(s, x, SIGMAS, generator=g, **LANGEVIN),
    "inpaint": lambda s, x, g: inpaint(
        s, x, SIGMAS, images=drawn(0.0), known=FIRST, generator=g, **LANGEVIN
    ),
    "consistent": lambda s, x, g: consistent_annealed(
        s, x, SIGMAS, epsilon=2 * LOW**2 * ETA, generator=g, denoise=True
    ),
    "reverse": lambda s, x, g: reverse_diffusion(s, x, SIGMAS, generator=g),
    "ancestral": lambda s, x, g: reverse_diffusion(s, x, SIGMAS, ancestral=True, generator=g),
    "corrected": lambda s, x, g: reverse_diffusion(s, x, SIGMAS, corrector_steps=1, generator=g),
    "euler": lambda s, x, g: probability_flow(s, x, SIGMAS, method="euler"),
    "heun": lambda s, x, g: probability_flow(s, x, SIGMAS, method="heun"),
    "multistep": lambda s, x, g: probability_flow(s, x, SIGMAS, method="multistep"),
}


@functools.cache
def by_the_exact_score(name):
    return RUN[name](exact, drawn(HIGH), generator_for(0))


@every_model
@pytest.mark.parametrize("name", RUN)
def test_a_model_of_another_library_drives_every_sampler_along_a_ladder(name, model):
    """To where the exact score leads with the same noise: data, up to the length of the steps."""
    got = RUN[name](model, drawn(HIGH), generator_for(0))
    torch.testing.assert_close(got, by_the_exact_score(name), rtol=1e-4, atol=1e-4)
    free = got[:, 1]
    spread = below_the_spread(ETA) if name == "consistent" else SPREAD
    assert float(free.mean()) == pytest.approx(MEAN, abs=4 * SPREAD / COUNT**0.5)
    assert float(free.std()) == pytest.approx(spread, rel=0.04 + 4 / (2 * COUNT) ** 0.5)
    if name == "inpaint":
        assert torch.equal(got[:, 0], drawn(0.0)[:, 0])


LEVEL = KNOWN[(KNOWN - 0.64).abs().argmin()].item()
FIXED = {
    "langevin": lambda s, x, g: langevin(s, x, epsilon=0.1, steps=60, generator=g),
    "mala": lambda s, x, g: (
        mala(
            s,
            x,
            log_density=lambda y: log_density(y, LEVEL),
            epsilon=0.3,
            steps=60,
            generator=g,
        ).x
    ),
}


@every_model
@pytest.mark.parametrize("name", FIXED)
def test_a_model_of_another_library_drives_the_samplers_of_one_density(name, model):
    """At one σ, whose noised data they sample."""
    x = torch.zeros(COUNT, 2, dtype=torch.float64)
    got = FIXED[name](lambda y: model(y, one_level(y, LEVEL)), x, generator_for(0))
    same = FIXED[name](lambda y: exact(y, one_level(y, LEVEL)), x, generator_for(0))
    torch.testing.assert_close(got, same, rtol=1e-4, atol=1e-4)
    spread = (SPREAD**2 + LEVEL**2) ** 0.5
    assert float(got.mean()) == pytest.approx(MEAN, abs=4 * spread / (2 * COUNT) ** 0.5)
    assert float(got.std()) == pytest.approx(spread, rel=0.03 + 4 / (4 * COUNT) ** 0.5)


SOLVED = {"k-diffusion and EDM": 1e-4, "noise": 1e-4, "diffusers": 0.02}  # to such an error


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_another_library_drives_the_adaptive_solver(name):
    """A model of time steps is off between them, by what its schedule is coarse."""
    x, error = drawn(HIGH)[:50], SOLVED[name]
    got = solve_probability_flow(MODELS[name], x, HIGH, 0.05, tolerance=error / 10)
    flow = MEAN + (x - MEAN) * ((SPREAD**2 + 0.05**2) / (SPREAD**2 + HIGH**2)) ** 0.5
    torch.testing.assert_close(got.x, flow, rtol=0, atol=error)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_another_library_has_a_likelihood(name):
    x, error = drawn(0.0)[:20], SOLVED[name]
    got = log_likelihood(
        MODELS[name], x, HIGH, 0.05, lambda y: log_density(y, HIGH), tolerance=error / 10
    )
    torch.testing.assert_close(got.log_p, log_density(x, 0.05), rtol=0, atol=3 * error)


# --- and the losses ------------------------------------------------------------------------------


@every_model
def test_a_model_of_another_library_has_the_denoising_loss_of_the_exact_score(model):
    x, sigma = drawn(0.0)[: len(SIGMAS)], SIGMAS
    losses = [
        denoising_score_matching(score, x, sigma, generator=generator_for(0))
        for score in (model, exact)
    ]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
