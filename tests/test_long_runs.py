"""The queue of long trainings: what it holds, that it goes on, and how a run is ended."""

import sys
from dataclasses import replace

import figure1
import long_runs
import pytest
import torch

from ncsn_core import pretrained
from ncsn_core.networks import build_network

pytestmark = pytest.mark.usefixtures("few_images")


@pytest.fixture
def queue(monkeypatch, tmp_path, tiny_config):
    """Two tiny runs; returns how to call the queue with arguments, and their folder."""
    plain = tiny_config(rate_schedule="constant", steps=4, image_size=14)
    configs = {"first": plain, "second": replace(plain, seed=1)}
    monkeypatch.setattr(long_runs, "jobs", lambda: configs)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["long_runs.py", str(tmp_path), *arguments])
        long_runs.main()

    return run, tmp_path


def test_every_run_may_stop_anywhere_and_builds():
    jobs, configs = long_runs.jobs(), long_runs.networks()
    assert [*configs][:3] == ["mnist", "mnist_continuous", "fashion_mnist"]
    figures = [job for name, job in jobs.items() if name not in configs]
    kinds = [(job.seed, job.preactivation) for job in figures]
    assert kinds == [(0, False), (1, False), (2, False), (0, True)]
    assert len(configs) == 3 + long_runs.SEEDS * len(long_runs.ABLATIONS)
    for config in configs.values():
        assert config.rate_schedule == "constant"
        assert config.checkpoint_every <= 500
        build_network(config.to_dict())


def test_the_queue_goes_through_its_runs_once(queue, capsys):
    run, folder = queue
    run("--precision", "32-true")
    first, second = (pretrained.load(folder / name) for name in ("first", "second"))
    assert first.manifest["step"] == second.manifest["step"] == 4
    assert first.weights_sha256 != second.weights_sha256
    assert first.sessions[-1]["precision"] == "32-true"
    capsys.readouterr()
    run("--precision", "32-true")
    assert capsys.readouterr().out == ""
    run("--list")
    assert "4 of 4 steps" in capsys.readouterr().out


def test_a_harvest_adds_a_tenth_and_may_be_interrupted(queue):
    run, folder = queue
    run("--precision", "32-true", "--only", "first")
    config = long_runs.harvest(load_like(folder / "first"), folder / "first")
    assert (config.steps, config.decay_steps) == (6, 2)
    run("--precision", "32-true", "--harvest", "first")
    record = pretrained.load(folder / "first")
    assert record.manifest["step"] == 6
    assert record.provenance["plans"][-1] == {"from_step": 4, "steps": 6, "decay_steps": 2}
    assert long_runs.harvest(load_like(folder / "first"), folder / "first") == config
    assert not (folder / "second").exists()


def load_like(folder):
    """The configuration that the queue has for a run, whatever its record says of its steps."""
    return long_runs.jobs()[folder.name]


def test_precision_has_to_be_named(queue, capsys):
    with pytest.raises(SystemExit):
        queue[0]()
    assert "name a --precision" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
def test_figure_1_goes_on_to_the_last_bit(tmp_path, preactivation):
    job = figure1.Figure1(3, preactivation, steps=4, batch_size=2, width=8, checkpoint_every=2)
    whole = figure1.train(job, tmp_path / "whole")
    figure1.train(replace(job, steps=2), tmp_path / "parts")
    parts = figure1.train(job, tmp_path / "parts")
    assert parts.manifest["step"] == 4
    assert [session["from_step"] for session in parts.sessions] == [0, 2]
    for part in ("results", "state"):
        for name, tensor in whole.tensors(part).items():
            assert torch.equal(parts.tensors(part)[name], tensor), name
    histories = whole.tensors("results")
    assert torch.isfinite(histories["history_clean"]).all()
    assert not torch.equal(histories["history_clean"], histories["history_noised"])


def test_the_queue_trains_figure_1_in_its_turn(queue, monkeypatch):
    run, folder = queue
    job = figure1.Figure1(0, steps=1, batch_size=2, width=8)
    monkeypatch.setattr(long_runs, "jobs", lambda: {"figure1/post-0": job})
    run("--precision", "32-true")
    assert pretrained.load(folder / "figure1" / "post-0").kind == "figure1"
