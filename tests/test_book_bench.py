"""The benchmark: its rows, its arithmetic, and that the paths that it compares do the same."""

import json
import math

import click
import pytest
import torch

from ncsn_core import pretrained
from ncsn_core.book import bench, plain
from ncsn_core.book.bench import Case, Path
from ncsn_core.data import batches
from ncsn_core.samplers import annealed_langevin
from ncsn_core.schedules import geometric_ladder

CPU = torch.device("cpu")

pytestmark = [pytest.mark.slow, pytest.mark.serial]

EAGER = Path(False, "32-true")


@pytest.fixture(scope="module")
def result():
    """The smallest benchmark, and what it said."""
    lines = []
    return bench.measure("smoke", CPU, compiled=False, report=lines.append), lines


def test_every_section_compares_with_the_plain_path(result):
    found, lines = result
    json.dumps(found, allow_nan=False)
    for section, cases in (("training", 1), ("sweep", 2), ("sampling", 1)):
        rows = found[section]
        plainly = [r for r in rows if r["path"] == "plain"]
        assert len(plainly) == cases
        assert all(r["ratio"] == r["ratio_low"] == r["ratio_high"] == 1 for r in plainly)
        assert all(len(r["seconds"]) == found["rounds"] for r in rows)
        assert all(r["per_second"] > 0 and r["peak_bytes"] > 0 for r in rows)
    names = {r["path"] for r in found["training"]}
    assert names == {"plain", "eager float32", "eager bfloat16"}
    assert found["default"] in names
    assert len(lines) == 1 + sum(len(found[s]) for s in ("training", "sweep", "sampling"))


def test_rates_follow_from_the_seconds():
    calls = {"plain": lambda: torch.ones(300, 300) @ torch.ones(300, 300), "other": lambda: None}
    first, other = bench.compare(calls, Case(1, 1, 4, 5), 3, CPU)
    assert first["flop"] == other["flop"] == 2 * 300**3
    assert first["ratio"] == 1
    assert other["ratio"] > 1
    middle = sorted(first["seconds"])[1]
    assert first["per_second"] == pytest.approx(5 / middle, rel=0.3)  # seconds are rounded


@pytest.mark.parametrize(("precision", "rounding"), [("32-true", 1e-4), ("bf16-mixed", 1e-2)])
def test_losses_and_samples_of_both_paths_agree(precision, rounding):
    agreement = bench.agreement(Path(False, precision), 3, CPU)
    assert agreement["first"] < rounding
    assert agreement["samples"] < 10 * rounding
    assert agreement["ours"] == pytest.approx(agreement["plain"], rel=rounding)


def test_the_step_that_is_timed_is_the_one_of_training(
    run_training, tiny_config, tmp_path, few_images
):
    config = tiny_config(steps=3)
    record = run_training(config, tmp_path)
    run = bench.new_run(config, EAGER, CPU)
    stream = batches(few_images, config.batch_size, seed=config.seed)
    for _ in range(3):
        bench.advance(run, stream)
    assert [round(float(loss), 4) for loss in run.losses] == record.history["loss"]
    average = run.average.state_dict()
    assert all(torch.equal(t, average[name]) for name, t in record.tensors().items())


def test_a_wrong_step_would_not_agree(monkeypatch):
    draw = bench.draw

    def doubled(*arguments):
        sigma, noise, v = draw(*arguments)
        return sigma, 1.1 * noise, v

    calls = iter([draw, doubled] * 3)  # the plain path draws first in every step
    monkeypatch.setattr(bench, "draw", lambda *a: next(calls)(*a))
    assert bench.agreement(EAGER, 3, CPU)["first"] > 0.01


def test_the_plain_sampler_is_ours_step_for_step():
    torch.manual_seed(0)
    case = Case(4, 1, 8, 3)
    network = plain.CondRefineNetDilated(4, 1, 3)
    sigmas = geometric_ladder(1.0, 0.1, 3)
    x = torch.rand(3, 1, 8, 8)
    images = plain.sample(network, x, sigmas, 2, 1e-3, torch.Generator().manual_seed(1))
    ours = annealed_langevin(
        bench.like(network, case, EAGER, sigmas),
        x,
        sigmas,
        epsilon=1e-3,
        steps_per_level=2,
        generator=torch.Generator().manual_seed(1),
    )
    assert len(images) == 3 * 2 + 1
    torch.testing.assert_close(images[-1], ours, rtol=1e-4, atol=1e-5)


def test_compiling_is_repaid_by_what_it_saves():
    case = Case(4, 1, 14, 4)
    of = {"channels": 4, "image_channels": 1, "image_size": 14, "batch": 4}
    rows = [
        of | {"path": "eager float32", "seconds": [0.5, 0.5, 0.6], "warm_up_seconds": 0.1},
        of | {"path": "compiled float32", "seconds": [0.3], "warm_up_seconds": 10.0},
    ]
    assert bench.repaid_after(rows, case) == math.ceil(10 / (0.5 - 0.3))
    rows[1]["seconds"] = [0.7]
    assert bench.repaid_after(rows, case) is None
    assert bench.repaid_after(rows[:1], case) is None


def test_the_command_writes_the_numbers_and_a_plot(ncsn, tmp_path, result, monkeypatch):
    asked = []

    def measure(profile, device, report):
        asked.append((profile, device, report))
        return result[0]

    monkeypatch.setattr(bench, "measure", measure)
    out = tmp_path / "bench"
    code, said, err = ncsn("book", "bench", "--profile", "smoke", "--device", "cpu", "--out", out)
    assert code == 0, err
    assert asked == [("smoke", CPU, click.echo)]
    assert "the losses differ by" in said
    record = pretrained.load(out)
    assert record.metrics == json.loads(json.dumps(result[0]))
    assert record.metrics["kind"] == "cpu"
    assert record.provenance["profile"] == "smoke"
    assert (out / "bench.png").stat().st_size > 5000
