"""Checks that can fail: a defect is planted, and the chapter's own check says so.

Each row is one wrong line, of the kind that a reader would write, in the package or in a chapter,
and the claims of the chapter that must then fail.  The chapter runs as it is otherwise, on a copy
of the package where the line is in the package.  `make stress` runs them all.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import chapters
import pytest

from ncsn_core.book import claims
from ncsn_core.book.ledger import expected_to, load_ledger, measurements

ROOT = Path(__file__).parents[1]
CHAPTER = ""
"""In place of a module: the wrong line is in the chapter itself."""


@dataclass(frozen=True)
class Defect:
    """One wrong line, where it is planted, and what must fail."""

    name: str
    module: str
    right: str
    wrong: str
    chapter: str
    fails: frozenset[str]


def defect(name, module, right, wrong, chapter, *fails):
    return Defect(name, module, right, wrong, chapter, frozenset(fails))


DEFECTS = [
    defect(
        "points of the target in place of the proposal's",
        CHAPTER,
        "draws(D, 1)),",
        "draws(D, 1, factor)),",
        "01_generative_models",
        "101",
    ),
    defect(
        "the density of the noise left out",
        CHAPTER,
        "logit_x = model(x) - noise.log_density(x)",
        "logit_x = model(x)",
        "01_generative_models",
        "102",
    ),
    defect(
        "the runs averaged before their scatter",
        CHAPTER,
        "share = mixture.responsibilities(made)[:, 1].reshape(gan_runs, -1).mean(1)",
        "share = mixture.responsibilities(made)[:, 1].mean().expand(gan_runs)",
        "01_generative_models",
        "103",
    ),
    defect(
        "wrong sign of the trace",
        "objectives",
        "return trace + _half_square(score(x))",
        "return _half_square(score(x)) - trace",
        "01_generative_models",
        "104",
    ),
    defect(
        "the square counted twice",
        "objectives",
        "return trace + _half_square(score(x))",
        "return trace + 2 * _half_square(score(x))",
        "02_score_matching",
        "4 exact score",
        "4 random networks",
    ),
    defect(
        "directions of length 1",
        "divergence",
        "    return v\n\n\ndef jac",
        "    return v / v.norm()\n\n\ndef jac",
        "03_trace_jacobian_cost",
        "5",
    ),
    defect(
        "the time of another estimator, live",
        CHAPTER,
        'largest["exact, loop"].median',
        'largest["sliced"].median',
        "03_trace_jacobian_cost",
        "20 live",
    ),
    defect(
        "the growth of another estimator",
        CHAPTER,
        "power_law(*in_units(name), 32) for name in exact",
        'power_law(*in_units("sliced"), 32) for name in exact',
        "03_trace_jacobian_cost",
        "20 loop",
        "20 vmap",
        "20 forward",
    ),
    defect(
        "wrong sign of the denoising target",
        CHAPTER,
        "return features(noised), -z / sigma,",
        "return features(noised), z / sigma,",
        "04_denoising_score_matching",
        "15 gaussian",
        "15 mixture",
    ),
    defect(
        "denoising compared with itself",
        CHAPTER,
        'fastest(timings[name], "forward")',
        'fastest(timings[name], "denoising")',
        "05_sliced_score_matching",
        "19 mlp, forward",
        "19 refinenet, forward",
    ),
    defect(
        "half of the drift",
        "samplers/langevin",
        "x + epsilon / 2 * s +",
        "x + epsilon / 4 * s +",
        "06_langevin_dynamics",
        "14 langevin",
        "105 gaussian",
    ),
    defect(
        "proposals not in the ratio",
        "samplers/mala",
        "proposal_log_p - log_p + back - forth",
        "proposal_log_p - log_p",
        "06_langevin_dynamics",
        "14 mala",
        "106",
    ),
    defect(
        "every proposal accepted",
        "samplers/mala",
        "accepted = u.log() < proposal",
        "accepted = u.log() <= 0 * proposal",
        "06_langevin_dynamics",
        "14 difference",
        "14 mala",
    ),
    defect(
        "no half of the drift, on the grid",
        CHAPTER,
        "    mean = points + epsilon / 2 * pair",
        "    mean = points + epsilon * pair",
        "06_langevin_dynamics",
        "105 two modes",
    ),
    defect(
        "the variance taken for the deviation",
        "distributions",
        "return ((expected - x) / variance.unsqueeze(1)).to(x)",
        "return ((expected - x) / variance.sqrt().unsqueeze(1)).to(x)",
        "07_manifold_hypothesis",
        "115 fixed distance",
        "115 typical points",
    ),
    defect(
        "the variance taken for the deviation, in the noise",
        CHAPTER,
        "noised = pixels + sigma * torch.randn",
        "noised = pixels + sigma**0.5 * torch.randn",
        "07_manifold_hypothesis",
        "3",
    ),
    defect(
        "the largest loss in place of the smallest",
        CHAPTER,
        "lowest, when = means.min().item()",
        "lowest, when = means.max().item()",
        "07_manifold_hypothesis",
        "1",
    ),
    defect(
        "the two runs exchanged, at the end",
        CHAPTER,
        'tail = history["noised"]',
        'tail = history["clean"]',
        "07_manifold_hypothesis",
        "2 drift",
    ),
    defect(
        "wrong sign of the bound",
        CHAPTER,
        'held_out["noised"].mean() / facts["bound"]',
        'held_out["noised"].mean() / -facts["bound"]',
        "07_manifold_hypothesis",
        "2 bound",
    ),
    defect(
        "the run with noise read for the one without",
        CHAPTER,
        'claims.check(143, lowest["no_norm"] /',
        'claims.check(143, lowest["no_norm_noised"] /',
        "07_manifold_hypothesis",
        "143 without noise",
    ),
    defect(
        "the run without noise read for the one with it",
        CHAPTER,
        'claims.check(143, lowest["no_norm_noised"] /',
        'claims.check(143, lowest["no_norm"] /',
        "07_manifold_hypothesis",
        "143 with noise",
    ),
    defect(
        "noise as wide as the whole scale",
        CHAPTER,
        "as_narrow = -6 * 256**2 * size",
        "as_narrow = -6 * size",
        "07_manifold_hypothesis",
        "144",
    ),
    defect(
        "wrong sign of the score",
        "distributions",
        "pull = -along / variances",
        "pull = along / variances",
        "08_low_density_regions",
        "6 error near the modes",
        "6 Fisher divergence",
        "7",
    ),
    defect(
        "the two sizes exchanged",
        CHAPTER,
        "ratio_of_means = best[0, :, 0].mean() / best[-1, :, 0].mean()",
        "ratio_of_means = best[-1, :, 0].mean() / best[0, :, 0].mean()",
        "08_low_density_regions",
        "110 near the modes",
    ),
    defect(
        "the modes in place of the void",
        CHAPTER,
        "lowest = running[..., 2]",
        "lowest = running[..., 0]",
        "08_low_density_regions",
        "110 in the void",
    ),
    defect(
        "the last levels only",
        CHAPTER,
        "annealed_langevin(score, start, ladder, callback",
        "annealed_langevin(score, start, ladder[-2:], callback",
        "09_slow_mixing",
        "8",
    ),
    defect(
        "all chains start in one corner",
        CHAPTER,
        "start = uniform(count, generator_for(seed, 15))",
        "start = uniform(count, generator_for(seed, 15), low=0.0)",
        "09_slow_mixing",
        "9",
    ),
    defect(
        "the true weights in place of the samples'",
        CHAPTER,
        'of_paper = plain["upper"][[0, 2, 3]]',
        'of_paper = plain["shares"][[0, 2, 3], None]',
        "09_slow_mixing",
        "10",
    ),
    defect(
        "variances in place of weights",
        CHAPTER,
        'values = bundle.tensors("annealed")["replaced"][:, 0]',
        'values = bundle.tensors("annealed")["replaced"][:, 1]',
        "09_slow_mixing",
        "11",
    ),
    defect(
        "the lower mode counted",
        CHAPTER,
        'many = bundle.tensors("annealed")["many steps"]',
        'many = 1 - bundle.tensors("annealed")["many steps"]',
        "09_slow_mixing",
        "12",
    ),
    defect(
        "the sum of the runs, not their mean",
        CHAPTER,
        "claims.check(13, longest.mean(),",
        "claims.check(13, longest.sum(),",
        "09_slow_mixing",
        "13",
    ),
    defect(
        "fractions in place of variances",
        CHAPTER,
        "[part][:, 1] for part in",
        "[part][:, 0] for part in",
        "09_slow_mixing",
        "120 convolved",
        "120 replaced",
    ),
    defect(
        "noise of one size at every level",
        "metrics/images",
        "score(batch + column * z, sigma)",
        "score(batch + z, sigma)",
        "10_ncsn",
        "17 weighted",
        "107",
    ),
    defect(
        "the network is not told the level",
        "networks/score",
        "if not self.conditional:",
        "if self.conditional:",
        "10_ncsn",
        "16",
    ),
    defect(
        "the weight applied twice",
        CHAPTER,
        'claims.check(17, mean_loss.max() / mean_loss.min(), part="unweighted")',
        'claims.check(17, balanced.max() / balanced.min(), part="unweighted")',
        "10_ncsn",
        "17 unweighted",
    ),
    defect(
        "the sum of the seeds, not their mean",
        CHAPTER,
        "claims.check(145, sum(relative) / 2,",
        "claims.check(145, sum(relative),",
        "10_ncsn",
        "145 α outside",
        "145 maximum",
    ),
    defect(
        "ratios not relative to their mean",
        CHAPTER,
        "(ratio / ratio.mean() - 1).abs().max()) for e, ratio in snr",
        "(ratio - 1).abs().max()) for e, ratio in snr",
        "11_annealed_langevin",
        "18",
    ),
    defect(
        "the variance of a level in place of its deviation",
        CHAPTER,
        'results[e]["dark_std"] / sigma for',
        'results[e]["dark_std"] / sigma**2 for',
        "11_annealed_langevin",
        "29",
    ),
    defect(
        "many images compared with few",
        CHAPTER,
        'inflation = mean(real[100], "fid") / mean(real[1000], "fid")',
        'inflation = mean(real[1000], "fid") / mean(real[100], "fid")',
        "12_experiments",
        "121 Fréchet",
    ),
    defect(
        "real images compared with samples",
        CHAPTER,
        'mean(real[100], "kid") - mean(real[1000], "kid")',
        'mean(real[100], "kid") - mean(fid["samples"][1000], "kid")',
        "12_experiments",
        "121 kernel",
    ),
    defect(
        "the method compared with the single level",
        CHAPTER,
        'claims.check(23, average("single_0.01") / base,',
        'claims.check(23, base / average("single_0.01"),',
        "12_experiments",
        "23",
    ),
    defect(
        "the method compared with itself",
        CHAPTER,
        '("annealing", "no_annealing"), ("conditioning", "unconditional")',
        '("annealing", "ncsn"), ("conditioning", "ncsn")',
        "12_experiments",
        "24 annealing",
        "24 conditioning",
    ),
    defect(
        "training images among the samples",
        CHAPTER,
        'samples = data.to_unit(drawn["denoised"]).flatten(1)',
        "samples = training[:1000]",
        "12_experiments",
        "25 pixels",
        "25 nearest pair",
    ),
    defect(
        "training images among the samples, in features",
        CHAPTER,
        '"samples": nearest_neighbors(extractor(drawn["denoised"]), known)',
        '"samples": nearest_neighbors(known[:1000], known)',
        "12_experiments",
        "25 features",
    ),
    defect(
        "the sum of Jacobian and transpose",
        "divergence",
        "odd = odd + (right - left)",
        "odd = odd + (right + left)",
        "12_experiments",
        "123",
    ),
    defect(
        "distances in place of losses",
        CHAPTER,
        "claims.check(122, spread(held_out_loss)",
        "claims.check(122, spread(scores)",
        "12_experiments",
        "122",
    ),
    defect(
        "the two kinds of network exchanged, in their cost",
        CHAPTER,
        '(("score", "ncsn"), ("pixels", "pixelcnn"))',
        '(("score", "pixelcnn"), ("pixels", "ncsn"))',
        "12_experiments",
        "124 score",
        "124 pixels",
    ),
    defect(
        "no half of the drift",
        "samplers/langevin",
        "x + epsilon / 2 * s +",
        "x + epsilon * s +",
        "13_inpainting",
        "130 once a level",
        "130 at every step",
    ),
    defect(
        "the share of a converged level in place of the fills'",
        CHAPTER,
        'claims.check(131, upper["level"][-1].mean()',
        "claims.check(131, converged[-1]",
        "13_inpainting",
        "131",
    ),
    defect(
        "known and unknown half exchanged",
        CHAPTER,
        "ratios = spread(fills, left_half) /",
        "ratios = spread(fills, ~left_half) /",
        "13_inpainting",
        "26",
    ),
    defect(
        "digits compared with another reference",
        CHAPTER,
        "fit = (digits == truth[:main, None])",
        "fit = (digits == truth.roll(1)[:main, None])",
        "13_inpainting",
        "132",
    ),
    defect(
        "the slope at the start alone",
        "samplers/ode",
        "(slope + end) / 2",
        "slope",
        "14_beyond",
        "140 heun",
    ),
    defect(
        "no correction from the step before",
        "samplers/ode",
        "target = clean + (clean - before) / (2 * ratio)",
        "target = clean",
        "14_beyond",
        "140 multistep",
    ),
    defect(
        "no σ in the slope",
        "samplers/ode",
        "            slope = sigma * s\n",
        "            slope = s\n",
        "14_beyond",
        "140 euler",
    ),
    defect(
        "wrong sign of the divergence",
        "samplers/ode",
        "_flat(sigma**2 * trace)]",
        "_flat(-(sigma**2) * trace)]",
        "14_beyond",
        "141",
    ),
    defect(
        "the slowest path in place of the fastest",
        CHAPTER,
        'return max(rows, key=lambda r: r["ratio"])',
        'return min(rows, key=lambda r: r["ratio"])',
        "speed_and_scale",
        "146 eager",
        "146 compiled",
        "147",
    ),
    defect(
        "the loss itself in place of the difference",
        CHAPTER,
        'abs(agreement["ours"] / agreement["plain"] - 1)',
        'abs(agreement["ours"] / agreement["plain"])',
        "speed_and_scale",
        "148",
    ),
]


def copy_with(defect: Defect, folder: Path) -> Path:
    """A copy of the package that has the wrong line; the large files are linked."""
    chapters.copy_package(folder)
    path = folder / "ncsn_core" / f"{defect.module}.py"
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(defect.right, defect.wrong), encoding="utf-8")
    return folder


def verdicts(planted: Defect, folder: Path) -> dict[str, bool]:
    """Whether each claim of the chapter holds in spite of the defect, by its name and part."""
    command = [sys.executable, ROOT / "tests" / "chapters.py", planted.chapter, "{}"]
    where = {}
    if planted.module == CHAPTER:
        command.append(json.dumps([planted.right, planted.wrong]))
    else:
        where["PYTHONPATH"] = str(copy_with(planted, folder))
    done = subprocess.run(command, env=os.environ | where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: holds for name, (_, holds) in found.items()}


@pytest.mark.stress
@pytest.mark.parametrize("planted", DEFECTS, ids=lambda d: f"{d.chapter[:2]}, {d.name}")
def test_a_planted_defect_fails_the_chapters_own_check(planted, tmp_path, figures):
    found = verdicts(planted, tmp_path)
    assert planted.fails <= found.keys()
    known = expected_to("fails") | expected_to("undecided")
    failed = {name for name, holds in found.items() if not holds} - known
    assert planted.fails <= failed, f"these do not notice: {planted.fails - failed}"
    figures(
        f"planted in {planted.chapter}, {planted.name}",
        chapter=planted.chapter,
        where=planted.module,
        name=planted.name,
        lines=[planted.right.strip().splitlines()[0], planted.wrong.strip().splitlines()[0]],
        failed=sorted(failed),
    )


def test_every_defect_names_lines_that_exist_and_claims_of_the_chapter():
    known = measurements()
    for planted in DEFECTS:
        if planted.module == CHAPTER:
            cells = chapters.code_cells(planted.chapter)
            source = "\n".join("".join(cell["source"]) for cell in cells)
        else:
            source = (ROOT / "ncsn_core" / f"{planted.module}.py").read_text(encoding="utf-8")
        assert source.count(planted.right) == 1, planted.name
        for name in planted.fails:
            assert known[name][0].chapter == planted.chapter


def test_every_claim_that_holds_is_spoiled_by_a_defect():
    assert set().union(*(planted.fails for planted in DEFECTS)) == expected_to("holds")


def test_a_value_outside_of_its_band_fails():
    """The other half of every check: the band itself."""
    for claim in load_ledger().values():
        for part, measurement in claim.parts.items():
            accept = measurement.accept
            outside = accept.max + 1 if accept.max is not None else accept.min - 1
            spread = None if measurement.interval is None else 0.5
            verdict = claims.check(claim.id, outside, part=part or None, spread=spread)
            assert not verdict.holds


def test_few_outputs_are_left_out_of_the_comparison():
    outputs, ignored = 0, 0
    for folder in ("notebooks", "notebooks/training"):
        for path in (ROOT / folder).glob("*.ipynb"):
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                if cell["cell_type"] == "code" and cell["outputs"]:
                    outputs += 1
                    ignored += "nbval-ignore-output" in cell["metadata"].get("tags", [])
    assert outputs > 500
    assert ignored / outputs <= 0.15
