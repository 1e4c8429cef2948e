"""`make gpu`, rehearsed on a CPU in the float16 of a GPU without bfloat16."""

import json

import gpu_notebooks
import nbformat
import pytest

from ncsn_core import checkpoints, pretrained


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    session = gpu_notebooks.Session(out, "smoke", "cpu", "16-mixed")
    return out, gpu_notebooks.work_through(session, 0.1)


@pytest.mark.slow
def test_everything_comes_out(rehearsal):
    out, summary = rehearsal
    assert [*summary["stages"]] == ["bench", "train", "evaluate"]
    assert not any("error" in found for found in summary["stages"].values())
    assert json.loads((out / "summary.json").read_text("utf-8")) == summary
    for name in ("train", "evaluate"):
        cells = nbformat.read(out / f"{name}.ipynb", as_version=4).cells
        assert all(c.execution_count for c in cells if c.cell_type == "code")
    network = pretrained.load(out / "mnist")
    assert "rounded_from" in network.manifest
    assert network.bundle("epsilon_2e-5").metrics["count"] == 4
    assert summary["stages"]["bench"]["training"]


@pytest.mark.slow
def test_it_computed_in_float16_and_ended_with_a_falling_rate(rehearsal):
    out, _ = rehearsal
    record = checkpoints.load(out / "run")
    assert {session["precision"] for session in record.sessions} == {"16-mixed"}
    assert record.config["decay_steps"] > 0
    assert record.manifest["step"] == record.config["steps"]
    bundle = pretrained.load(out / "mnist").bundle("epsilon_2e-5")
    assert bundle.provenance["autocast"] == "float16"


def test_a_stage_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    def fail(session, seconds):
        raise RuntimeError("no such kernel")

    stages = {"bench": fail, "train": lambda *_: {}, "evaluate": lambda _, left: {"left": left}}
    monkeypatch.setattr(gpu_notebooks, "STAGES", stages)
    session = gpu_notebooks.Session(tmp_path, "smoke", "cpu", "auto")
    found = gpu_notebooks.work_through(session, 1)["stages"]
    assert "no such kernel" in found["bench"]["error"]
    assert 50 < found["evaluate"]["left"] <= 60
