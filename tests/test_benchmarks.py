"""The benchmark: its rows, its arithmetic, and that the paths that it compares do the same."""

import json
import sys

import plain
import pytest
import speed
import torch
from speed import Case, Way

from ncsn_core import pretrained
from ncsn_core.data import batches
from ncsn_core.samplers import annealed_langevin
from ncsn_core.schedules import geometric_ladder

CPU = torch.device("cpu")

pytestmark = [pytest.mark.slow, pytest.mark.serial]

EAGER = Way(False, "32-true")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The smallest benchmark, as the command writes it."""
    out = tmp_path_factory.mktemp("speed") / "record"
    with pytest.MonkeyPatch.context() as patch:
        command = ["speed.py", "--profile", "smoke", "--device", "cpu", "--out", str(out)]
        patch.setattr(sys, "argv", command)
        speed.main()
    return pretrained.load(out)


def test_every_section_compares_with_the_plain_path(record):
    found = record.metrics
    json.dumps(found, allow_nan=False)
    assert record.provenance["profile"] == "smoke"
    for section, cases in (("training", 1), ("sweep", 2), ("sampling", 1)):
        rows = found[section]
        plainly = [r for r in rows if r["path"] == "plain"]
        assert len(plainly) == cases
        assert all(r["ratio"] == r["ratio_low"] == r["ratio_high"] == 1 for r in plainly)
        assert all(len(r["seconds"]) == 2 for r in rows)
        assert all(r["per_second"] > 0 and r["peak_bytes"] > 0 for r in rows)
    names = {r["path"] for r in found["training"]}
    assert names == {"plain", "eager float32", "eager bfloat16"}
    assert found["default"] in names


def test_a_new_record_has_every_number_that_the_page_shows(record):
    shown = pretrained.results("benchmark_cpu").metrics
    assert record.metrics.keys() <= shown.keys()
    assert record.metrics["agreement"].keys() <= shown["agreement"].keys()
    assert record.metrics["ceilings"].keys() == shown["ceilings"].keys()
    assert record.metrics["training"][0].keys() == shown["training"][0].keys()


@pytest.mark.parametrize(("section", "evaluations"), [("training", 1), ("sampling", speed.LEVELS)])
def test_rates_follow_from_the_seconds(section, evaluations):
    calls = {"plain": lambda: torch.ones(300, 300) @ torch.ones(300, 300)}
    calls["eager bfloat16"] = lambda: None
    ceilings = {"convolution float32": 2.0, "convolution bfloat16": 4.0}
    first, other = speed.compare(calls, Case(1, 1, 4, 5), 3, CPU, ceilings, section)
    assert first["flop"] == other["flop"] == 2 * 300**3
    assert first["ratio"] == 1
    assert other["ratio"] > 1
    middle = sorted(first["seconds"])[1]
    assert first["per_second"] == pytest.approx(5 * evaluations / middle, rel=0.3)  # rounded
    for row, ceiling in ((first, 2), (other, 4)):
        per_second = row["per_second"] / 5 / evaluations * row["flop"] / 1e9
        assert row["gflop_per_second"] == pytest.approx(per_second)
        assert row["of_ceiling"] == pytest.approx(per_second / ceiling)


@pytest.mark.parametrize(("precision", "rounding"), [("32-true", 1e-4), ("bf16-mixed", 1e-2)])
def test_losses_and_samples_of_both_paths_agree(precision, rounding):
    agreement = speed.agreement(Way(False, precision), 3, CPU)
    assert agreement["first"] < rounding
    assert agreement["samples"] < 10 * rounding
    assert agreement["ours"] == pytest.approx(agreement["plain"], rel=rounding)


def test_the_step_that_is_timed_is_the_one_of_training(
    run_training, tiny_config, tmp_path, few_images
):
    config = tiny_config(steps=3)
    record = run_training(config, tmp_path)
    run = speed.new_run(config, EAGER, CPU)
    stream = batches(few_images, config.batch_size, seed=config.seed)
    for _ in range(3):
        speed.advance(run, stream)
    assert [round(float(loss), 4) for loss in run.losses] == record.history["loss"]
    average = run.average.state_dict()
    assert all(torch.equal(t, average[name]) for name, t in record.tensors().items())


def test_a_wrong_step_would_not_agree(monkeypatch):
    draw = speed.draw

    def doubled(*arguments):
        sigma, noise, v = draw(*arguments)
        return sigma, 1.1 * noise, v

    monkeypatch.setattr(speed, "draw", doubled)  # what the plain path is given
    assert speed.agreement(EAGER, 3, CPU)["first"] > 0.01


def test_the_plain_sampler_is_ours_step_for_step():
    torch.manual_seed(0)
    case = Case(4, 1, 8, 3)
    network = plain.CondRefineNetDilated(4, 1, 3)
    sigmas = geometric_ladder(1.0, 0.1, 3)
    x = torch.rand(3, 1, 8, 8)
    torch.manual_seed(1)
    images = plain.sample(network, x, sigmas, 2, 1e-3)
    ours = annealed_langevin(
        speed.like(network, case, EAGER, sigmas),
        x,
        sigmas,
        epsilon=1e-3,
        steps_per_level=2,
        generator=torch.Generator().manual_seed(1),
    )
    assert len(images) == 3 * 2 + 1
    torch.testing.assert_close(images[-1], ours, rtol=1e-4, atol=1e-5)
