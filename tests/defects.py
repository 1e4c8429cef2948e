"""Defects of the kind that readers make, and the claims of a chapter that must then fail.

A function of the package is replaced by a wrong one, which is given the right one first.  Where a
chapter computes by itself what its claim is about, a line of the chapter is replaced.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce, wraps
from importlib import import_module
from typing import Any

import torch

from ncsn_core.divergence import exact_divergence
from ncsn_core.metrics.images import LevelStatistics
from ncsn_core.samplers.langevin import langevin
from ncsn_core.samplers.mala import Mala


@dataclass(frozen=True)
class Defect:
    """Where it is, what is right and wrong there, and what must fail."""

    name: str
    where: str
    """module:name in the package; empty for a line of the chapter."""
    right: str
    wrong: str | Callable[..., Any]
    chapter: str
    fails: frozenset[str]


def edit(name: str, right: str, wrong: str, chapter: str, *fails: str) -> Defect:
    """A wrong line of a chapter."""
    return Defect(name, "", right, wrong, chapter, frozenset(fails))


DEFECTS: list[Defect] = []


def planted(where: str, chapter: str, *fails: str) -> Callable[[Any], Any]:
    """Note a wrong function."""

    def note(wrong: Callable[..., Any]) -> Callable[..., Any]:
        name = wrong.__name__.replace("_", " ")
        DEFECTS.append(Defect(name, where, where, wrong, chapter, frozenset(fails)))
        return wrong

    return note


def plant(defect: Defect) -> None:
    """Replace a function, in every module that has it; for a process of its own."""
    module, _, name = defect.where.partition(":")
    *path, last = name.split(".")
    owner = reduce(getattr, path, import_module(f"ncsn_core.{module}"))
    right = getattr(owner, last)

    @wraps(right)
    def wrong(*arguments: Any, **options: Any) -> Any:
        return defect.wrong(right, *arguments, **options)

    setattr(owner, last, wrong)
    for title, other in list(sys.modules.items()):
        if title.startswith("ncsn_core"):
            for key, value in list(vars(other).items()):
                if value is right:
                    setattr(other, key, wrong)


def half_square(s):
    return 0.5 * s.flatten(1).square().sum(1)


@planted("objectives:implicit_score_matching", "02_score_matching", "104")
def wrong_sign_of_the_trace(right, score, x, **options):
    return half_square(score(x)) - exact_divergence(score, x, **options)


@planted(
    "objectives:implicit_score_matching",
    "02_score_matching",
    "4 exact score",
    "4 random networks",
)
def the_square_counted_twice(right, score, x, **options):
    return exact_divergence(score, x, **options) + 2 * half_square(score(x))


@planted("divergence:projections", "03_trace_jacobian_cost", "5")
def directions_of_length_1(right, *arguments):
    v = right(*arguments)
    return v / v.norm()


@planted(
    "divergence:quadratic_form",
    "05_sliced_score_matching",
    "19 mlp, forward",
    "19 refinenet, forward",
)
def no_derivative_in_forward_mode(right, score, x, v, mode="reverse"):
    if mode == "reverse":
        return right(score, x, v)
    s = score(x)
    return s, (v * s).flatten(1).sum(1)


@planted("samplers.langevin:langevin_step", "06_langevin_dynamics", "14 langevin", "105 gaussian")
def half_of_the_drift(right, x, s, epsilon, z):
    return right(x, s / 2, epsilon, z)


@planted("samplers.mala:log_proposal", "06_langevin_dynamics", "14 mala", "106")
def proposals_not_in_the_ratio(right, y, x, s, epsilon):
    return torch.zeros(len(x))


@planted("samplers.mala:mala", "06_langevin_dynamics", "14 difference", "14 mala")
def every_proposal_accepted(right, score, x, *, log_density, **options):
    return Mala(langevin(score, x, **options), torch.ones(len(x)))


@planted(
    "distributions:Curve.score",
    "07_manifold_hypothesis",
    "115 fixed distance",
    "115 typical points",
)
def the_variance_taken_for_the_deviation(right, curve, x, sigma=0.0):
    return right(curve, x, sigma) * torch.as_tensor(sigma).reshape(-1, 1)


@planted(
    "distributions:GaussianMixture.score",
    "08_low_density_regions",
    "6 error near the modes",
    "6 Fisher divergence",
    "7",
)
def wrong_sign_of_the_score(right, mixture, x, sigma=0.0):
    return -right(mixture, x, sigma)


@planted("samplers.annealed:annealed_langevin", "09_slow_mixing", "8")
def the_last_levels_only(right, score, x, sigmas, **options):
    return right(score, x, sigmas[-2:], **options)


@planted("metrics.images:level_statistics", "10_ncsn", "17 weighted", "107")
def every_level_taken_for_the_last(right, score, x, sigmas, **options):
    return right(lambda noised, sigma: score(noised, 0 * sigma + sigmas[-1]), x, sigmas, **options)


@planted("metrics.images:level_statistics", "10_ncsn", "17 unweighted")
def the_weight_in_the_loss(right, score, x, sigmas, **options):
    found = right(score, x, sigmas, **options)
    return LevelStatistics(found.loss * sigmas[:, None].cpu() ** 2, found.score_norm)


@planted("networks.score:NoiseConditionalScore._run", "10_ncsn", "16")
def the_network_is_not_told_the_level(right, score, x, level):
    return right(score, x, 0 * level)


@planted("divergence:antisymmetry", "12_experiments", "123")
def the_symmetric_share(right, *arguments, **options):
    return 1 - right(*arguments, **options)


@planted(
    "samplers.langevin:langevin_step", "13_inpainting", "130 once a level", "130 at every step"
)
def no_half_of_the_drift(right, x, s, epsilon, z):
    return right(x, 2 * s, epsilon, z)


@planted("samplers.ode:probability_flow", "14_beyond", "140 heun", "140 multistep")
def the_slope_at_the_start_alone(right, score, x, sigmas, *, method="heun", **options):
    return right(score, x, sigmas, method="euler", **options)


@planted("samplers.ode:probability_flow", "14_beyond", "140 euler")
def no_σ_in_the_slope(right, score, x, sigmas, **options):
    return right(lambda x, sigma: score(x, sigma) / sigma[:, None], x, sigmas, **options)


@planted("samplers.ode:log_likelihood", "14_beyond", "141")
def wrong_sign_of_the_divergence(right, *arguments, divergence=exact_divergence, **options):
    return right(*arguments, divergence=lambda s, x: -divergence(s, x), **options)


DEFECTS += [
    edit(
        "points of the target in place of the proposal's",
        "draws(D, 1)),",
        "draws(D, 1, factor)),",
        "01_generative_models",
        "101",
    ),
    edit(
        "the density of the noise left out",
        "logit_x = model(x) - noise.log_density(x)",
        "logit_x = model(x)",
        "01_generative_models",
        "102",
    ),
    edit(
        "the runs averaged before their scatter",
        "share = mixture.responsibilities(made)[:, 1].reshape(gan_runs, -1)",
        "share = mixture.responsibilities(made)[:, 1].mean().expand(gan_runs, 1)",
        "01_generative_models",
        "103",
    ),
    edit(
        "the time of another estimator, live",
        'live[32, "exact, loop"].median',
        'live[32, "exact, weights"].median',
        "03_trace_jacobian_cost",
        "20 live",
    ),
    edit(
        "the growth of another estimator",
        "power_law(*in_units(name), 32) for name in exact",
        'power_law(*in_units("sliced"), 32) for name in exact',
        "03_trace_jacobian_cost",
        "20 loop",
        "20 vmap",
        "20 forward",
    ),
    edit(
        "wrong sign of the denoising target",
        "return features(noised), -z / sigma,",
        "return features(noised), z / sigma,",
        "04_denoising_score_matching",
        "15 gaussian",
        "15 mixture",
    ),
    edit(
        "no half of the drift, on the grid",
        "    mean = points + epsilon / 2 * pair",
        "    mean = points + epsilon * pair",
        "06_langevin_dynamics",
        "105 two modes",
    ),
    edit(
        "the variance taken for the deviation, in the noise",
        "noised = pixels + sigma * torch.randn",
        "noised = pixels + sigma**0.5 * torch.randn",
        "07_manifold_hypothesis",
        "3",
    ),
    edit(
        "the largest loss in place of the smallest",
        "unfold(0, 100, 100).mean(1).min()",
        "unfold(0, 100, 100).mean(1).max()",
        "07_manifold_hypothesis",
        "1",
    ),
    edit(
        "the two runs exchanged, at the end",
        'tail = history["history_noised"]',
        'tail = history["history_clean"]',
        "07_manifold_hypothesis",
        "2 drift",
    ),
    edit(
        "the loss for its depth",
        "return -units.nan_to_num(nan=math.inf).amin(1)",
        "return units.nan_to_num(nan=math.inf).amin(1)",
        "07_manifold_hypothesis",
        "149 as in the code",
        "149 pre-activation",
        "149 photographs",
        "150 thin, no grid",
    ),
    edit(
        "the deviation for the variance, in the unit of losses",
        "return means * (2 * sigma**2 / D)",
        "return means * (2 * sigma / D)",
        "07_manifold_hypothesis",
        "150 grid, not thin",
    ),
    edit(
        "noise as wide as the whole scale",
        "as_narrow = -6 * 256**2 * size",
        "as_narrow = -6 * size",
        "07_manifold_hypothesis",
        "144",
    ),
    edit(
        "the two sizes exchanged",
        "gain = ends[0, :, 0] / ends[1, :, 0]",
        "gain = ends[1, :, 0] / ends[0, :, 0]",
        "08_low_density_regions",
        "110 near the modes",
    ),
    edit(
        "the modes in place of the void",
        "void = torch.cat(runs)[:, 2]",
        "void = torch.cat(runs)[:, 0]",
        "08_low_density_regions",
        "110 in the void",
    ),
    edit(
        "all chains start in one corner",
        "start = uniform(count, generator_for(seed, 15))",
        "start = uniform(count, generator_for(seed, 15), low=0.0)",
        "09_slow_mixing",
        "9",
    ),
    edit(
        "the true weights in place of the samples'",
        'of_paper = plain["upper"][[0, 2, 3]]',
        'of_paper = plain["shares"][[0, 2, 3], None]',
        "09_slow_mixing",
        "10",
    ),
    edit(
        "variances in place of weights",
        'values = bundle.tensors("annealed")["replaced"][:, 0]',
        'values = bundle.tensors("annealed")["replaced"][:, 1]',
        "09_slow_mixing",
        "11",
    ),
    edit(
        "the lower mode counted",
        'many = bundle.tensors("annealed")["many steps"]',
        'many = 1 - bundle.tensors("annealed")["many steps"]',
        "09_slow_mixing",
        "12",
    ),
    edit(
        "fractions in place of variances",
        "part: ends[part][:, 1] for",
        "part: ends[part][:, 0] for",
        "09_slow_mixing",
        "120 convolved",
        "120 replaced",
    ),
    edit(
        "ratios not relative to their mean",
        "(ratio / ratio.mean() - 1).abs().max()) for e, ratio in snr",
        "(ratio - 1).abs().max()) for e, ratio in snr",
        "11_annealed_langevin",
        "18",
    ),
    edit(
        "the variance of a level in place of its deviation",
        'results[e]["dark_std"] / sigma for',
        'results[e]["dark_std"] / sigma**2 for',
        "11_annealed_langevin",
        "29",
    ),
    edit(
        "many images compared with few",
        'inflation = mean(real[100], "fid") / mean(real[1000], "fid")',
        'inflation = mean(real[1000], "fid") / mean(real[100], "fid")',
        "12_experiments",
        "121 Fréchet",
    ),
    edit(
        "real images compared with samples",
        'mean(real[100], "kid") - mean(real[1000], "kid")',
        'mean(real[100], "kid") - mean(fid["samples"][1000], "kid")',
        "12_experiments",
        "121 kernel",
    ),
    edit(
        "the method compared with itself",
        '{"annealing": "no_annealing", "conditioning": "unconditional"}',
        '{"annealing": "ncsn", "conditioning": "ncsn"}',
        "12_experiments",
        "24 annealing",
        "24 conditioning",
    ),
    edit(
        "training images among the samples",
        'samples = data.to_unit(drawn["denoised"]).flatten(1)',
        "samples = training[:1000]",
        "12_experiments",
        "25 pixels",
        "25 nearest pair",
    ),
    edit(
        "training images among the samples, in features",
        '"samples": nearest_neighbors(extractor(drawn["denoised"]), known)',
        '"samples": nearest_neighbors(known[:1000], known)',
        "12_experiments",
        "25 features",
    ),
    edit(
        "the two kinds of network exchanged, in their cost",
        '(("score", "ncsn"), ("pixels", "pixelcnn"))',
        '(("score", "pixelcnn"), ("pixels", "ncsn"))',
        "12_experiments",
        "124 score",
        "124 pixels",
    ),
    edit(
        "the known pixel looked at in place of the unknown one",
        "return (x[:, 1] > 0).double().reshape(groups",
        "return (x[:, 0] > 0).double().reshape(groups",
        "13_inpainting",
        "131",
    ),
    edit(
        "known and unknown half exchanged",
        "ratios = spread(fills, left_half) /",
        "ratios = spread(fills, ~left_half) /",
        "13_inpainting",
        "26",
    ),
    edit(
        "digits compared with another reference",
        "fit = (digits == truth[:main, None])",
        "fit = (digits == truth.roll(1)[:main, None])",
        "13_inpainting",
        "132",
    ),
    edit(
        "the slowest path in place of the fastest",
        'return max(rows, key=lambda r: r["ratio"])',
        'return min(rows, key=lambda r: r["ratio"])',
        "speed_and_scale",
        "146 eager",
        "146 compiled",
        "147",
    ),
]

READ = {"2 bound", "13", "23", "122", "143 with noise", "143 without noise", "145 maximum"}
READ |= {"145 α outside", "148"}
"""No defect for these: their chapters divide or average numbers of a record of an earlier run.  A
wrong line would be another number for the check, and the bands of all claims are tried anyway."""
