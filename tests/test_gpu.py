"""What a rented GPU does, rehearsed on a CPU: its stages, and what is behind them if they fail."""

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import gpu
import graphs
import pytest
import torch
from packaging.requirements import Requirement

from ncsn_core import checkpoints, pretrained, training
from ncsn_core.errors import CorruptFileError
from ncsn_core.networks import NoiseConditionalScore, RefineNet, build_network
from ncsn_core.randomness import generator_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PACKAGES = ["torch", "torchvision", "numpy", "scipy", "safetensors", "filelock", "jaxtyping"]
PACKAGES += ["torchmetrics", "tqdm", "pyyaml", "lightning-fabric"]
WITHOUT = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, PackageNotFoundError
modules, names = (set(part.split()) for part in sys.argv.pop(1).split(":"))
find_spec, from_name = PathFinder.find_spec, Distribution.from_name
def found(name, path=None, target=None):
    return None if name.partition(".")[0] in modules else find_spec(name, path, target)
def installed(name):
    if name.lower().replace("_", "-") in names:
        raise PackageNotFoundError(name)
    return from_name(name)
PathFinder.find_spec, Distribution.from_name = found, installed
import gpu
gpu.main()
"""


def absent():
    """Everything that is installed here and that no package of the list needs."""

    def normal(name):
        return name.lower().replace("_", "-").replace(".", "-")

    needed, open_ = set(), list(PACKAGES)
    while open_:
        name = normal(open_.pop())
        if name not in needed:
            needed.add(name)
            for line in metadata.requires(name) or ():
                requirement = Requirement(line)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    open_.append(requirement.name)
    owners = metadata.packages_distributions()
    ours = {"ncsn_core", *(m for m, names in owners.items() if needed & set(map(normal, names)))}
    others = {normal(name) for names in owners.values() for name in names} - needed
    return set(owners) - ours, others - {"ncsn-core"}


# --- all of it, without other packages -----------------------------------------------------------


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """One go with tiny settings, by a process that has no other packages; its folder."""
    folder = tmp_path_factory.mktemp("gpu")
    modules, names = absent()
    assert {"papermill", "nbformat", "matplotlib", "click", "torch_fidelity", "psutil"} <= modules
    command = [sys.executable, "-c", WITHOUT, f"{' '.join(modules)}:{' '.join(names)}", "out"]
    path = os.pathsep.join(str(ROOT / name) for name in (".", "benchmarks", "tools"))
    done = subprocess.run(
        [*command, "--work=work", "--device=cpu", "--smoke", "--minutes=10", "--commit=abc123"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_one_go_needs_no_other_package_and_brings_few_small_files(rehearsal):
    files = {path.name: path.stat().st_size for path in (rehearsal / "out").rglob("*")}
    assert {*files} == {f"{n}.safetensors" for n in ("paper", "samples", "queue")} | {
        "summary.json"
    }
    assert max(files.values()) < gpu.MOST_BYTES == 16 * 2**20
    summary = json.loads((rehearsal / "out" / "summary.json").read_text("utf-8"))
    assert summary["commit"] == "abc123"
    assert summary["device"]
    assert torch.__version__.startswith(summary["versions"]["torch"])
    assert "failed: nothing" in summary["log"][-1]
    stages = summary["stages"]
    assert [*stages] == ["bench", "paper", "samples", "queue"]
    assert all(found["error"] is None and found["seconds"] > 0 for found in stages.values())
    assert {"product bfloat16", "copy GB/s"} <= stages["bench"]["ceilings"].keys()
    for section in ("training", "sampling"):
        rows = {row["path"]: row for row in stages["bench"][section]}
        assert rows["plain"]["ratio"] == 1
        assert rows["eager float32"]["of_ceiling"] > 0
    assert stages["bench"]["agreement"]["first"] < 1e-4
    assert stages["paper"]["step"] == 6  # four, and a tenth that is at least a checkpoint's two
    assert stages["paper"]["provenance"]["plans"][-1]["decay_steps"] == 2
    assert stages["paper"]["provenance"]["step"] == "eager"  # there is no GPU
    distances = stages["samples"]["distances"]["8"]
    assert distances["samples"]["features"] == "digit_classifier"
    assert 0 < distances["held-out images"]["fid"] < distances["uniform noise"]["fid"]
    assert stages["queue"]["runs"] == ["mnist", "ablations/no_norm-0"]


def test_what_came_back_becomes_the_records_that_were_packed(rehearsal, tmp_path, monkeypatch):
    records = {
        str(r.folder.relative_to(tmp_path)): r for r in gpu.unpack(rehearsal / "out", tmp_path)
    }
    assert {*records} == {"paper", "samples", "mnist", "ablations/no_norm-0"}
    for name, record in records.items():
        assert pretrained.load(rehearsal / "work" / "records" / name).manifest == record.manifest
        assert record.sessions[-1]["commit"] == "abc123"
    whole = pretrained.load(rehearsal / "work" / "paper").tensors()
    for key, tensor in records["paper"].tensors().items():
        assert torch.equal(tensor, whole[key].half())
    assert torch.isfinite(
        pretrained.model(records["paper"]).score()(torch.rand(1, 1, 14, 14), torch.ones(1))
    ).all()
    assert records["samples"].tensors("results")["samples"].shape == (8, 1, 14, 14)
    assert records["samples"].provenance["weights_sha256"] == records["paper"].weights_sha256

    monkeypatch.setattr(gpu.checkpoints, "save", lambda *a, **b: records["mnist"])
    with pytest.raises(CorruptFileError, match="is not what was packed"):
        gpu.unpack(rehearsal / "out", tmp_path)


def test_what_goes_back_fits():
    """Half-precision weights of the 64 channels and of the whole queue, and 10,000 images."""

    def size(config):
        with torch.device("meta"):
            return sum(2 * p.numel() for p in build_network(config.to_dict()).parameters())

    names = 200_000  # bytes for names, shapes and manifests
    assert size(gpu.load_config("mnist", "gpu")) + names < gpu.MOST_BYTES
    assert sum(map(size, gpu.long_runs.networks().values())) + 20 * names < gpu.MOST_BYTES
    assert 10_000 * 28 * 28 + names < gpu.MOST_BYTES


# --- stages --------------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path, few_images, monkeypatch):
    """A session with a minute, whose pictures of digits are few."""
    monkeypatch.setattr(gpu, "load_images", lambda name, split="train", size=28: few_images)
    monkeypatch.setattr(gpu, "can_compile", lambda device: False)
    session = gpu.Session(tmp_path / "out", tmp_path / "work", CPU, smoke=True)
    session.ends = time.monotonic() + 60
    return session


def test_a_stage_that_fails_does_not_stop_the_others(session, monkeypatch):
    def failing(session):
        raise ZeroDivisionError("on purpose")

    seen = []
    stages = {"a": lambda s: seen.append("a"), "b": failing, "c": lambda s: seen.append("c")}
    monkeypatch.setattr(gpu, "STAGES", stages)
    gpu.work_through(session, {"a": 1.0, "b": 1.0, "c": 1.0}, time.monotonic() + 60)
    assert seen == ["a", "c"]
    summary = json.loads((session.out / "summary.json").read_text("utf-8"))
    assert summary["stages"]["a"]["error"] is None
    assert "ZeroDivisionError: on purpose" in summary["stages"]["b"]["error"]
    assert any("b failed: ZeroDivisionError: on purpose" in line for line in summary["log"])


@pytest.mark.parametrize(("plain", "rest"), [(False, ["b=1.0", "c=2.0"]), (True, ["c=2.0"])])
def test_a_failure_on_a_gpu_goes_on_in_a_new_process(session, monkeypatch, plain, rest):
    def failing(session):
        raise RuntimeError("an illegal memory access was encountered")

    commands = []
    monkeypatch.setattr(gpu.os, "execv", lambda path, command: commands.append(command))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "out", "--minutes", "9"])
    stages = dict.fromkeys("abc", lambda session: None) | {"b": failing}
    monkeypatch.setattr(gpu, "STAGES", stages)
    session.device, session.plain = torch.device("cuda"), plain
    gpu.work_through(session, {"a": 1.0, "b": 1.0, "c": 2.0}, time.monotonic() + 60)
    (command,) = commands
    assert command[:5] == [sys.executable, "gpu.py", "out", "--minutes", "9"]
    assert "--plain" in command
    assert 0.5 < float(command[6].removeprefix("--minutes=")) < 1
    assert command[7:] == ["--plan", *rest]


def test_what_a_stage_leaves_goes_to_the_others(session, monkeypatch):
    left = []
    monkeypatch.setattr(gpu, "STAGES", dict.fromkeys("abc", lambda s: left.append(s.left())))
    gpu.work_through(session, {"a": 1.0, "b": 1.0, "c": 2.0}, time.monotonic() + 80)
    assert left == pytest.approx([20, 80 / 3, 80], abs=1)


def test_the_command_line_reads_the_plan(monkeypatch, tmp_path, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "out"), *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            gpu.main()
        return exit_.value.code

    seen = []
    stages = {"bench": lambda s: seen.append(s), "paper": lambda s: 1 / 0}
    monkeypatch.setattr(gpu, "STAGES", stages)
    plain = ("--device", "cpu", "--work", tmp_path / "work", "--plan", "paper=1", "bench=3")
    assert run(*plain) == 1  # one failed
    assert run("--plain", *plain[:-2], "bench=3") == 1  # it did, in the session before
    assert [s.plain for s in seen] == [False, True]
    assert run(*plain[:-1], "lunch=3") == 2
    assert "unknown stages ['lunch']; known: bench, paper" in capsys.readouterr().err


def test_a_pack_that_is_too_large_is_refused(session, monkeypatch):
    gpu.trained(session, "run", gpu.load_config("mnist", "smoke", **gpu.TINY), 0)
    monkeypatch.setattr(gpu, "MOST_BYTES", 10_000)
    with pytest.raises(ValueError, match="and 10,000 may go back"):
        session.keep("pack", "run")
    assert not (session.out / "pack.safetensors").exists()


def test_training_that_ran_out_of_time_goes_on_exactly(session):
    config = gpu.load_config("mnist", "smoke", **gpu.TINY | {"steps": 6})
    assert gpu.trained(session, "cut", config, 0).manifest["step"] == 2
    assert gpu.trained(session, "cut", config, 60).manifest["step"] == 6
    gpu.trained(session, "whole", config, 60)
    cut, whole = (pretrained.load(session.work / name) for name in ("cut", "whole"))
    assert cut.history == whole.history
    assert cut.weights_sha256 == whole.weights_sha256


def test_compiled_normalizations_that_fail_are_left_out(session, monkeypatch):
    config, train = gpu.load_config("mnist", "smoke", **gpu.TINY), training.train

    def failing(*args, compile, **options):
        if compile is None:
            raise RuntimeError("no ptxas")
        return train(*args, compile=compile, **options)

    monkeypatch.setattr(training, "train", failing)
    assert gpu.trained(session, "run", config, 60).manifest["step"] == 4
    assert any("without compiled normalizations: RuntimeError" in x for x in session.summary["log"])
    monkeypatch.setattr(training, "train", lambda *a, **b: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gpu.trained(session, "other", config, 60)


def test_another_machine_goes_on_from_the_weights(session, tmp_path):
    config = gpu.load_config("mnist", "smoke", **gpu.TINY)
    first = gpu.trained(session, "run", config, 60)
    session.keep("pack", "run")
    gpu.unpack(session.out, tmp_path / "records")
    other = gpu.Session(tmp_path / "out2", tmp_path / "work2", CPU, start_from=tmp_path / "records")
    again = gpu.trained(other, "run", config, 60)
    assert again.provenance["started_from"]["weights_sha256"] == first.weights_sha256
    assert "started_from" not in gpu.trained(other, "new", config, 60).provenance


def test_the_rate_falls_in_the_last_tenth_also_when_that_was_interrupted(session, monkeypatch):
    def trained(session, name, config, seconds):
        asked.append((config.steps, config.decay_steps, seconds))
        step = reached.pop(0)
        config = config.to_dict()
        record = checkpoints.save(
            session.work / name,
            {},
            kind="ncsn",
            config=config,
            step=step,
            provenance={"seconds": 99},
        )
        if step == 6500:  # the machine is taken away in the middle of the last tenth
            raise KeyboardInterrupt
        return record

    asked, reached = [], [6000, 6500, 7000, 20_000, 22_000]
    monkeypatch.setattr(gpu, "trained", trained)
    monkeypatch.setattr(gpu.Session, "keep", lambda *a: None)
    session.smoke = False
    with pytest.raises(KeyboardInterrupt):
        gpu.paper(session)
    gpu.paper(session)
    assert [steps for *steps, _ in asked] == [[200_000, 0], [7000, 1000], [7000, 1000]]
    assert asked[0][2] == pytest.approx(60 / 1.1, abs=1)
    assert asked[2][2] is None
    gpu.paper(session)  # in another session the rate is constant again, and falls again
    assert [steps for *steps, _ in asked[3:]] == [[200_000, 0], [22_000, 2000]]
    assert asked[3][2] == pytest.approx((60 - 9.9) / 1.1, abs=1)  # a tenth of all that was made


def test_samples_go_on_where_they_stopped(session):
    gpu.trained(session, "paper", gpu.load_config("mnist", "smoke", **gpu.TINY), 60)
    ends, session.ends = session.ends, 0.0
    gpu.samples(session)

    def images():
        return pretrained.load(session.work / "records" / "samples").tensors("results")["samples"]

    few = images()
    assert len(few) == 4  # a batch there always is
    session.ends = ends
    gpu.samples(session)
    assert len(images()) == 8
    assert torch.equal(images()[:4], few)
    assert [*session.summary["stages"]["samples"]["distances"]] == ["8"]


def test_a_run_of_the_queue_that_fails_is_left_out(session, monkeypatch):
    trained = gpu.trained

    def failing(session, name, *rest):
        return 1 / 0 if name == "mnist" else trained(session, name, *rest)

    monkeypatch.setattr(gpu, "trained", failing)
    gpu.queue(session)
    assert session.summary["stages"]["queue"]["runs"] == ["ablations/no_norm-0"]
    assert any("mnist is left out: ZeroDivisionError" in line for line in session.summary["log"])
    session.ends = 0.0  # what an earlier session has made goes back all the same
    (session.out / "queue.safetensors").unlink()
    gpu.queue(session)
    assert (session.out / "queue.safetensors").exists()


def test_the_benchmark_is_made_once_and_without_what_fails(session, monkeypatch):
    def calls(*arguments):
        return {"plain": lambda: torch.ones(9, 9) @ torch.ones(9, 9), "bad": lambda: 1 / 0}

    for name in ("training_calls", "sampling_calls"):
        monkeypatch.setattr(gpu.speed, name, calls)
    monkeypatch.setattr(gpu.speed, "agreement", lambda *a: {"first": 0.0})
    monkeypatch.setattr(gpu.speed, "measure_ceilings", lambda *a, **b: {"convolution float32": 1.0})
    monkeypatch.setattr(graphs, "graphed", like_a_graph)
    session.note("bench", error=None)
    gpu.benchmark(session)
    found = session.summary["stages"]["bench"]
    assert [row["path"] for row in found["training"]] == ["plain", "graph float32"]
    assert [row["path"] for row in found["sampling"]] == ["plain"]
    assert sum("bad: ZeroDivisionError" in line for line in session.summary["log"]) == 2
    monkeypatch.setattr(gpu.speed, "measure_ceilings", lambda *a, **b: pytest.fail("again"))
    gpu.benchmark(session)


# --- graphs --------------------------------------------------------------------------------------


def like_a_graph(call, example):
    """What a graph does: the same memory for all arguments, and a result that is overwritten."""
    static = [t.clone() for t in example]
    call(*static)
    result = call(*static).clone()

    def replay(*given):
        graphs.copy(given, static)
        result.copy_(call(*static))
        return result.clone()

    return replay


def stale(call, example):
    """A graph that computes with the memory of the example."""
    return lambda *given: call(*example)


def without_update(call, example):
    """A graph in which the weights stay what they were."""
    first = call(*example)
    return lambda *given: first


def train_with(config, folder, run_training, said, **options):
    ways = []

    def prepare(run):
        ways.append(graphs.speed_up(run, said.append))

    record = run_training(config, folder, prepare=prepare, **options)
    return record, ways


CHANGES = [{}, {"objective": "sliced"}, {"parametrization": "continuous", "gradient_clip": 1.0}]


@pytest.mark.parametrize("change", CHANGES)
def test_a_captured_step_trains_like_the_plain_one(
    change, run_training, tiny_config, tmp_path, few_images, monkeypatch
):
    monkeypatch.setattr(graphs, "graphed", like_a_graph)
    config = tiny_config(image_size=14, steps=4, **change)
    said = []
    record, ways = train_with(config, tmp_path / "graph", run_training, said)
    assert (ways, said) == (["graph"], [])
    plain = run_training(config, tmp_path / "plain")
    assert record.history["loss"] == pytest.approx(plain.history["loss"], rel=1e-4)
    cut, _ = train_with(config, tmp_path / "cut", run_training, said, minutes=0.0)
    assert cut.manifest["step"] == 2
    resumed, ways = train_with(config, tmp_path / "cut", run_training, said)
    assert ways == ["graph"]
    assert resumed.history == record.history
    assert resumed.weights_sha256 == record.weights_sha256


@pytest.mark.parametrize("wrong", [None, stale, without_update, lambda call, example: 1 / 0])
def test_behind_a_graph_that_fails_or_is_wrong_there_is_the_plain_step(
    wrong, run_training, tiny_config, tmp_path, few_images, monkeypatch
):
    """None: there is no GPU.  The run is then the very one that it would have been."""
    if wrong is not None:
        monkeypatch.setattr(graphs, "graphed", wrong)
    config, said = tiny_config(image_size=14), []
    record, ways = train_with(config, tmp_path / "fallen", run_training, said)
    assert ways == ["eager"]
    assert len(said) == 1
    assert said[0].startswith("no graph: ")
    plain = run_training(config, tmp_path / "plain")
    assert record.history == plain.history
    assert record.weights_sha256 == plain.weights_sha256
    assert record.manifest["files"]["state"] == plain.manifest["files"]["state"]


def test_an_evaluation_is_captured_if_it_is_right(monkeypatch):
    network = RefineNet(2, 1, 8, levels=3).requires_grad_(False)
    score = NoiseConditionalScore(network, gpu.long_runs.load_config().sigmas[:3])
    x = torch.rand(4, 1, 8, 8, generator=generator_for(0))
    sigma = score.sigmas[[2, 0, 1, 1]]
    expected, said = score(x, sigma), []
    for wrong in (stale, lambda call, example: 1 / 0):
        monkeypatch.setattr(graphs, "graphed", wrong)
        assert not graphs.speed_up_score(score, x.shape, said.append)
        assert torch.equal(score(x, sigma), expected)
    assert len(said) == 2
    monkeypatch.setattr(graphs, "graphed", like_a_graph)
    assert graphs.speed_up_score(score, x.shape, said.append)
    assert torch.equal(score(x, sigma), expected)
    with pytest.raises(RuntimeError):
        score(x[:2], sigma[:2])  # a graph is for batches of one size
