"""Training: exact resume, what stops a run, what is kept, and that it learns."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ncsn_core import checkpoints, devices, networks, pretrained, provenance, run, training
from ncsn_core.config import config_for, load_config
from ncsn_core.data import batches, load_images, read_images
from ncsn_core.errors import CorruptFileError, NCSNError, NonFiniteLossError
from ncsn_core.metrics import classifier
from ncsn_core.metrics.classifier import shift, train_classifier
from ncsn_core.networks import ContinuousScore, NoiseConditionalScore, build
from ncsn_core.objectives import denoising_score_matching, sliced_score_matching_vr
from ncsn_core.provenance import tensor_sha256
from ncsn_core.schedules import denoiser_weight, draw_levels, draw_log_uniform

pytestmark = pytest.mark.usefixtures("few_images")


class SmallNetwork(nn.Module):
    """A stand-in for the RefineNet where a test is about the loop: a convolution and a scale."""

    def __init__(self, config):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.scale = nn.Embedding(config["levels"], 1)

    def forward(self, x, level):
        return self.conv(2 * x - 1) * self.scale(level)[:, :, None, None]

    def compile_normalizations(self, compiled):
        assert not compiled


@pytest.fixture
def refinenet():
    """Ask for this to train the real network, at a tenth of a second a step."""


@pytest.fixture(autouse=True)
def small_network(request, monkeypatch):
    if "refinenet" not in request.fixturenames:
        monkeypatch.setattr(build, "build_network", SmallNetwork)


@pytest.fixture
def at_step(monkeypatch):
    """Do something when the loss of a step (from 0) is asked for; returns what to do with it."""

    def install(step, action):
        calls = []

        def objective(score, x, sigma, **options):
            calls.append(1)
            loss = denoising_score_matching(score, x, sigma, **options)
            return action(loss) if len(calls) == step + 1 else loss

        monkeypatch.setattr(run, "denoising_score_matching", objective)

    return install


def interrupt(loss):
    raise KeyboardInterrupt


def no_data(*args, **kwargs):
    pytest.fail("a finished run reads no data")


# --- a whole run -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_leaves_a_checkpoint_with_weights_history_and_provenance(
    run_training, tiny_config, tmp_path, few_images, refinenet
):
    config = tiny_config()
    record = run_training(config, tmp_path / "run")
    assert record == pretrained.load(tmp_path / "run")
    assert record.kind == "ncsn"
    assert record.config == config.to_dict()
    assert record.manifest["step"] == 6
    assert record.history["step"] == [1, 2, 3, 4, 5, 6]
    assert all(0 < loss < 1e6 for loss in record.history["loss"])
    assert record.provenance["images"] == len(few_images)
    assert record.provenance["seed"] == 0
    assert record.provenance["seconds"] > 0
    assert re.fullmatch("[0-9a-f]{64}", record.provenance["data_sha256"])
    x = torch.rand(2, 1, 28, 28)
    assert record.score()(x, record.sigmas[:2]).isfinite().all()


def test_first_loss_is_the_objective_of_the_fresh_network(
    run_training, tiny_config, tmp_path, few_images
):
    config = tiny_config(steps=1)
    record = run_training(config, tmp_path)
    torch.manual_seed(config.seed)
    network = build.build_network(config.to_dict())
    _, x, generator = next(batches(few_images, config.batch_size, seed=config.seed))
    score = NoiseConditionalScore(network, config.sigmas)
    with torch.no_grad():
        sigma = draw_levels(config.sigmas, len(x), generator)
        loss = denoising_score_matching(score, x, sigma, generator=generator).mean()
    assert record.history["loss"] == [pytest.approx(float(loss), rel=1e-4)]


def test_same_seed_same_run_other_seed_other_run(run_training, tiny_config, tmp_path):
    runs = [
        run_training(tiny_config(steps=2, seed=seed), tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    hashes = [run.weights_sha256 for run in runs]
    assert hashes[0] == hashes[1] != hashes[2]


def test_history_averages_over_the_steps_between_two_logs(run_training, tiny_config, tmp_path):
    fine = run_training(tiny_config(log_every=1), tmp_path / "fine").history
    coarse = run_training(tiny_config(log_every=2), tmp_path / "coarse").history
    assert coarse["step"] == [2, 4, 6]
    pairs = zip(fine["loss"][::2], fine["loss"][1::2], strict=True)
    assert coarse["loss"] == pytest.approx([(a + b) / 2 for a, b in pairs], rel=1e-4)


@pytest.mark.slow
def test_training_lowers_the_loss(run_training, tmp_path, tiny_config, refinenet):
    """16 steps on 64 images; the loss of a single batch has a spread of a few percent."""
    config = tiny_config(
        steps=16, channels=4, batch_size=8, learning_rate=1e-2, checkpoint_every=16
    )
    loss = run_training(config, tmp_path).history["loss"]
    first, last = sum(loss[:4]) / 4, sum(loss[-4:]) / 4
    assert last < 0.9 * first


def test_progress_bar_shows_loss_and_speed(run_training, tiny_config, tmp_path, capsys):
    run_training(tiny_config(steps=2), tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "mnist (smoke)" in shown
    assert "2/2" in shown
    assert re.search(r"loss \d+\.\d\d, \d+ images/s", shown)


# --- resume ------------------------------------------------------------------------------------


@pytest.fixture
def uninterrupted(run_training, tiny_config, tmp_path):
    return run_training(tiny_config(), tmp_path / "uninterrupted")


def assert_same_run(resumed, uninterrupted):
    assert resumed.history == uninterrupted.history
    assert resumed.weights_sha256 == uninterrupted.weights_sha256
    files = (resumed.manifest["files"], uninterrupted.manifest["files"])
    assert files[0]["state"]["sha256"] == files[1]["state"]["sha256"]


@pytest.mark.parametrize("step", [0, 1, 3, 5])
def test_resuming_after_an_interrupt_equals_never_stopping(
    run_training, tiny_config, tmp_path, at_step, uninterrupted, step
):
    config, folder = tiny_config(), tmp_path / "run"
    at_step(step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_training(config, folder)
    at_step(-1, interrupt)  # never again

    stopped = pretrained.load(folder)
    assert stopped.manifest["step"] == step
    assert stopped.history["step"] == list(range(1, step + 1))
    assert_same_run(run_training(config, folder), uninterrupted)


@pytest.mark.slow
def test_resuming_a_refinenet_is_exact(run_training, tiny_config, tmp_path, refinenet):
    """The moments of Adam in their memory format, the moving average, γ, α and β: all of it."""
    config = tiny_config(steps=4)
    whole = run_training(config, tmp_path / "whole")
    assert run_training(config, tmp_path / "parts", minutes=0.0).manifest["step"] == 2
    assert_same_run(run_training(config, tmp_path / "parts"), whole)


def test_an_interrupt_in_the_middle_of_an_update_is_resumed_exactly_too(
    run_training, tiny_config, tmp_path, monkeypatch, uninterrupted
):
    """Ctrl-C between Adam's update and the moving average's: half a step must not be saved."""
    config, folder, update = tiny_config(), tmp_path / "run", run.update_average
    updates = []

    def interrupted(*arguments):
        updates.append(arguments)
        if len(updates) == 4:
            raise KeyboardInterrupt
        update(*arguments)

    monkeypatch.setattr(run, "update_average", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_training(config, folder)
    assert_same_run(run_training(config, folder), uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_its_step_finish_and_the_run_is_resumed_exactly(
    run_training, tiny_config, tmp_path, at_step, uninterrupted, number
):
    def strike(loss):
        signal.raise_signal(number)
        return loss

    config, folder, handler = tiny_config(), tmp_path / "run", signal.getsignal(number)
    at_step(2, strike)
    with pytest.raises(KeyboardInterrupt):
        run_training(config, folder)
    at_step(-1, interrupt)
    assert signal.getsignal(number) is handler
    assert pretrained.load(folder).manifest["step"] == 3
    assert_same_run(run_training(config, folder), uninterrupted)


def test_a_second_signal_does_not_wait_for_the_step(
    run_training, tiny_config, tmp_path, at_step, uninterrupted
):
    def strike_twice(loss):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal interrupts at once")

    config, folder = tiny_config(), tmp_path / "run"
    at_step(2, strike_twice)
    with pytest.raises(KeyboardInterrupt):
        run_training(config, folder)
    at_step(-1, interrupt)
    assert pretrained.load(folder).manifest["step"] == 2
    assert_same_run(run_training(config, folder), uninterrupted)


def test_a_process_among_several_waits_for_its_step_however_often_it_is_told(monkeypatch):
    """The launcher sends its own signal after that of the terminal."""
    with run.interrupts_wait(alone=False) as interrupted:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert interrupted.is_set()


def test_signals_keep_their_way_outside_of_the_main_thread():
    handler, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere():
        with run.interrupts_wait() as interrupted:
            seen.append((signal.getsignal(signal.SIGINT), interrupted.is_set()))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(handler, False)]


def test_a_run_that_another_process_has_moved_on_meanwhile_is_not_overwritten(
    run_training, tiny_config, tmp_path, monkeypatch, uninterrupted
):
    config, folder, load = tiny_config(), tmp_path / "run", training._load

    def slowly(*arguments):
        monkeypatch.setattr(training, "_load", load)
        run_training(config, folder, minutes=0.0)
        return load(*arguments)

    monkeypatch.setattr(training, "_load", slowly)
    with pytest.raises(NCSNError, match="another process has trained in"):
        run_training(config, folder)
    assert pretrained.load(folder).manifest["step"] == 2
    assert_same_run(run_training(config, folder), uninterrupted)


def test_a_time_budget_stops_at_checkpoints_and_the_pieces_make_the_same_run(
    run_training, tiny_config, tmp_path, uninterrupted
):
    config, steps = tiny_config(), []
    while not steps or steps[-1] < config.steps:
        record = run_training(config, tmp_path / "run", minutes=0.0)
        steps.append(record.manifest["step"])
    assert steps == [2, 4, 6]
    assert_same_run(record, uninterrupted)


def test_a_crash_while_saving_resumes_from_the_checkpoint_before(
    run_training, tiny_config, tmp_path, monkeypatch, uninterrupted
):
    config, folder, save = tiny_config(), tmp_path / "run", checkpoints.save

    def crash(folder, parts, **manifest):
        if manifest["step"] == 4:
            raise OSError("No space left on device")
        return save(folder, parts, **manifest)

    monkeypatch.setattr(checkpoints, "save", crash)
    with pytest.raises(OSError, match="No space left"):
        run_training(config, folder)
    monkeypatch.setattr(checkpoints, "save", save)
    assert pretrained.load(folder).manifest["step"] == 2
    assert_same_run(run_training(config, folder), uninterrupted)


def test_a_finished_run_is_returned_without_training(
    run_training, tiny_config, tmp_path, monkeypatch, uninterrupted
):
    monkeypatch.setattr(training, "load_images", no_data)
    again = run_training(tiny_config(), tmp_path / "uninterrupted")
    assert again.manifest == uninterrupted.manifest


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"learning_rate": 5e-4}, {"channels": 3}, {"ema_decay": 0.5}]
)
def test_a_folder_with_another_configuration_is_refused(
    run_training, tiny_config, tmp_path, uninterrupted, change
):
    (name,) = change
    with pytest.raises(NCSNError, match=rf"another configuration \({name} differ") as caught:
        run_training(tiny_config(**change), tmp_path / "uninterrupted")
    assert "another folder" in str(caught.value)
    assert pretrained.load(tmp_path / "uninterrupted").manifest == uninterrupted.manifest


def test_a_run_under_the_same_conditions_is_one_session(
    run_training, tiny_config, tmp_path, uninterrupted
):
    config = tiny_config(checkpoint_every=2)
    run_training(config, tmp_path / "run", minutes=0.0)
    record = run_training(config, tmp_path / "run")
    assert [session["from_step"] for session in record.sessions] == [0]
    assert record.sessions == uninterrupted.sessions
    expected = {"from_step", "device_type", *checkpoints.SESSION}
    assert record.sessions[0].keys() == expected


def test_what_changes_between_two_sessions_is_told_of_both(
    run_training, tiny_config, tmp_path, monkeypatch
):
    config = tiny_config(checkpoint_every=2)
    run_training(config, tmp_path, minutes=0.0)
    monkeypatch.setattr(provenance, "commit", lambda: "another")
    record = run_training(config, tmp_path)
    assert [session["from_step"] for session in record.sessions] == [0, 2]
    assert record.sessions[1] == record.sessions[0] | {"from_step": 2, "commit": "another"}


def test_the_precision_is_decided_once(run_training, tiny_config, tmp_path, monkeypatch):
    """However fast or slow the processor is in bfloat16 when a run goes on."""
    config = tiny_config(checkpoint_every=2)
    for name, fast in (("fast", True), ("slow", False)):
        monkeypatch.setattr(devices, "_cpu_is_fast_in_bf16", lambda fast=fast: fast)
        run_training(config, tmp_path / name, minutes=0.0, precision="auto")
        monkeypatch.setattr(devices, "_cpu_is_fast_in_bf16", lambda fast=fast: not fast)
        record = run_training(config, tmp_path / name, precision="auto")
        expected = "bf16-mixed" if fast else "32-true"
        assert [session["precision"] for session in record.sessions] == [expected]


def test_another_precision_is_the_users_choice_and_is_told(run_training, tiny_config, tmp_path):
    config = tiny_config(checkpoint_every=2)
    run_training(config, tmp_path, minutes=0.0, precision="32-true")
    record = run_training(config, tmp_path, precision="bf16-mixed")
    found = [(session["from_step"], session["precision"]) for session in record.sessions]
    assert found == [(0, "32-true"), (2, "bf16-mixed")]


def rewritten(folder, **changes):
    """The record in a folder with another provenance; None takes a key away."""
    record = pretrained.load(folder)
    provenance = record.provenance | changes
    manifest = {k: v for k, v in record.manifest.items() if k not in ("files", "sha256", "format")}
    manifest["provenance"] = {k: v for k, v in provenance.items() if v is not None}
    parts = {part: record.tensors(part) for part in record.manifest["files"]}
    return checkpoints.save(folder, parts, **manifest)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_run_of_a_device_that_is_not_here_goes_on_when_another_is_named(
    run_training, tiny_config, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    config = tiny_config(checkpoint_every=2)
    record = run_training(config, tmp_path, minutes=0.0)
    there = record.sessions[0] | {"device_type": kind, "device": "a GPU", "precision": "16-mixed"}
    rewritten(tmp_path, sessions=[there])
    with pytest.raises(NCSNError, match=rf"type '{kind}', which is not here.*device='cpu'"):
        run_training(config, tmp_path, device="auto")
    record = run_training(config, tmp_path, device="cpu", precision="auto")
    assert [session["device_type"] for session in record.sessions] == [kind, "cpu"]
    assert record.sessions[1]["precision"] in ("bf16-mixed", "32-true")


def test_a_run_of_before_there_were_sessions_goes_on(
    run_training, tiny_config, tmp_path, uninterrupted
):
    config = tiny_config(checkpoint_every=2)
    record = run_training(config, tmp_path / "run", minutes=0.0)
    old = {name: record.sessions[0][name] for name in checkpoints.SESSION}
    rewritten(tmp_path / "run", sessions=None, **old | {"commit": "long ago"})
    record = run_training(config, tmp_path / "run")
    assert record.weights_sha256 == uninterrupted.weights_sha256
    assert record.sessions[0]["commit"] == "long ago"
    assert [session["from_step"] for session in record.sessions] == [0, 2]


def test_a_folder_of_other_files_is_refused_before_the_first_step(
    run_training, tiny_config, tmp_path
):
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(NCSNError, match="holds other files and no record"):
        run_training(tiny_config(), tmp_path, prepare=lambda run: pytest.fail("it has begun"))
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


def test_a_longer_plan_goes_on_and_is_recorded(run_training, tiny_config, tmp_path, uninterrupted):
    longer = run_training(tiny_config(steps=8), tmp_path / "uninterrupted")
    assert longer.manifest["step"] == 8
    assert longer.history["loss"][:6] == uninterrupted.history["loss"]
    assert [plan["steps"] for plan in longer.provenance["plans"]] == [6, 8]


@pytest.mark.parametrize("decay", [0.0, 0.9], ids=["plain", "averaged"])
def test_a_run_may_start_from_the_weights_of_another_and_says_so(
    run_training, tiny_config, tmp_path, uninterrupted, decay
):
    """A rate of 1e-12 leaves them as they are."""
    config = tiny_config(steps=2, checkpoint_every=1, learning_rate=1e-12, ema_decay=decay, seed=5)
    run_training(config, tmp_path / "run", start_from=uninterrupted, minutes=0.0)
    record = run_training(config, tmp_path / "run")
    assert record.manifest["step"] == 2
    assert record.provenance["started_from"] == {
        "name": "uninterrupted",
        "step": 6,
        "commit": uninterrupted.sessions[-1]["commit"],
        "weights_sha256": uninterrupted.weights_sha256,
    }
    for name, weights in uninterrupted.tensors().items():
        torch.testing.assert_close(record.tensors()[name], weights)


def test_a_run_that_began_from_other_weights_does_not_go_on_from_these(
    run_training, tiny_config, tmp_path, uninterrupted
):
    run_training(tiny_config(), tmp_path / "run", minutes=0.0)
    with pytest.raises(NCSNError, match=r"not begin with the weights of 'uninterrupted'\. Leave"):
        run_training(tiny_config(), tmp_path / "run", start_from=uninterrupted)


def test_an_exported_network_is_not_trained_on_and_the_way_out_is_told(
    run_training, tiny_config, tmp_path
):
    record = run_training(tiny_config(), tmp_path / "run", minutes=0.0)
    shipped = checkpoints.export(record, tmp_path / "shipped")
    with pytest.raises(NCSNError, match=r"without the state .*--start-from .*shipped"):
        run_training(tiny_config(), tmp_path / "shipped")
    again = run_training(tiny_config(), tmp_path / "new", start_from=shipped, minutes=0.0)
    assert again.provenance["started_from"]["weights_sha256"] == record.weights_sha256


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"channels": 3}, "that network has channels 2 and this one channels 3"),
        ({"levels": 5}, "that network has levels 10 and this one levels 5"),
        ({"keep_means": False}, "has keep_means True and this one keep_means False"),
        ({"conditional": False}, "has conditional True and this one conditional False"),
    ],
)
def test_a_start_of_other_sizes_is_refused_before_anything_is_computed(
    run_training, tiny_config, tmp_path, uninterrupted, monkeypatch, changes, says
):
    monkeypatch.setattr(training, "choose", lambda *a: pytest.fail("something was computed"))
    with pytest.raises(NCSNError, match=says):
        run_training(tiny_config(**changes), tmp_path / "run", start_from=uninterrupted)
    assert not (tmp_path / "run").exists()


def test_nothing_starts_from_a_classifier_or_from_pixels_of_another_range(
    run_training, tiny_config, tmp_path, uninterrupted
):
    classifier = checkpoints.Record(tmp_path, uninterrupted.manifest | {"kind": "classifier"})
    with pytest.raises(NCSNError, match="a classifier and no NCSN"):
        run_training(tiny_config(), tmp_path / "run", start_from=classifier)
    config = uninterrupted.config | {"input_range": [-1.0, 1.0]}
    other = checkpoints.Record(tmp_path, uninterrupted.manifest | {"config": config})
    with pytest.raises(NCSNError, match=r"of pixels in another range than \[0, 1\]"):
        run_training(tiny_config(), tmp_path / "run", start_from=other)


def test_a_damaged_checkpoint_is_not_resumed(run_training, tiny_config, tmp_path):
    folder = tmp_path / "run"
    record = run_training(tiny_config(), folder, minutes=0.0)
    path = folder / record.manifest["files"]["state"]["name"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="truncated or altered"):
        run_training(tiny_config(), folder)


# --- numbers that are not finite ---------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    run_training, tiny_config, tmp_path, at_step, bad
):
    at_step(4, lambda loss: loss * bad)
    with pytest.raises(NonFiniteLossError, match=f"loss of step 5 is {bad}") as caught:
        run_training(tiny_config(), tmp_path)
    assert "learning_rate" in str(caught.value)
    kept = pretrained.load(tmp_path)
    assert kept.manifest["step"] == 4
    assert all(tensor.isfinite().all() for tensor in kept.tensors().values())


def test_the_first_bad_step_is_named_when_logs_are_rare(
    run_training, tiny_config, tmp_path, at_step
):
    at_step(2, lambda loss: loss * math.nan)
    config = tiny_config(steps=12, log_every=6, checkpoint_every=6)
    with pytest.raises(NonFiniteLossError, match="loss of step 3 is nan"):
        run_training(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_huge_learning_rate_ends_in_the_same_clear_error(run_training, tiny_config, tmp_path):
    config = tiny_config(learning_rate=1e30, checkpoint_every=6)
    with pytest.raises(NonFiniteLossError, match="Try a smaller learning_rate"):
        run_training(config, tmp_path)


@pytest.mark.parametrize(
    ("step", "clip"), [(3, None), (5, None), (3, 1.0)], ids=["checkpoint", "last step", "clipped"]
)
def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(
    run_training, tiny_config, tmp_path, at_step, step, clip
):
    """The gradient may overflow where the loss does not; the next loss would show it too late."""

    def overflow(loss):
        loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    at_step(step, overflow)
    with pytest.raises(NonFiniteLossError):
        run_training(tiny_config(gradient_clip=clip), tmp_path)
    kept = pretrained.load(tmp_path)
    for part in ("weights", "state"):
        assert all(tensor.isfinite().all() for tensor in kept.tensors(part).values())
    assert kept.manifest["step"] == step - 1


# --- what is optimized -------------------------------------------------------------------------


def test_learning_rate_schedules():
    cosine = load_config(rate_schedule="cosine", steps=100, learning_rate=2e-3)
    assert cosine.learning_rate_at(0) == 2e-3
    assert cosine.learning_rate_at(50) == pytest.approx(1e-3)
    assert cosine.learning_rate_at(100) == pytest.approx(0, abs=1e-18)
    rates = [cosine.learning_rate_at(step) for step in range(101)]
    assert rates == sorted(rates, reverse=True)
    constant = load_config(rate_schedule="constant", steps=100, learning_rate=2e-3)
    assert {constant.learning_rate_at(step) for step in (0, 50, 99)} == {2e-3}
    falling = dataclasses.replace(constant, decay_steps=20)
    assert falling.learning_rate_at(80) == 2e-3
    assert falling.learning_rate_at(90) == pytest.approx(1e-3)
    assert falling.learning_rate_at(99) == pytest.approx(1e-4)


def test_a_decay_may_be_added_to_a_run_that_was_planned_without(
    run_training, tiny_config, tmp_path
):
    """Its first steps are those of before, its last ones follow the new plan, resumed or not."""
    plain = {"ema_decay": 0.9, "rate_schedule": "constant"}
    first = run_training(tiny_config(**plain), tmp_path / "run")
    harvest = tiny_config(**plain, steps=10, decay_steps=4)
    run_training(harvest, tmp_path / "run", minutes=0.0)
    record = run_training(harvest, tmp_path / "run")
    assert_same_run(record, run_training(harvest, tmp_path / "whole"))
    assert record.history["loss"][:6] == first.history["loss"]
    assert record.provenance["plans"] == [
        {"from_step": 0, "steps": 6, "decay_steps": 0},
        {"from_step": 6, "steps": 10, "decay_steps": 4},
    ]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_updates_are_adams_at_the_scheduled_rate(
    run_training, tiny_config, tmp_path, few_images, schedule
):
    """Three steps of the loop written out, with torch's plain Adam."""
    config = tiny_config(steps=3, ema_decay=0.0, rate_schedule=schedule)
    record = run_training(config, tmp_path)

    torch.manual_seed(config.seed)
    network = build.build_network(config.to_dict())
    score = NoiseConditionalScore(network, config.sigmas)
    adam = torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.999))
    stream = batches(few_images, config.batch_size, seed=config.seed)
    for _, (step, x, generator) in zip(range(3), stream, strict=False):
        adam.param_groups[0]["lr"] = config.learning_rate_at(step)
        adam.zero_grad()
        sigma = draw_levels(config.sigmas, len(x), generator)
        loss = denoising_score_matching(score, x, sigma, generator=generator).mean()
        loss.backward()
        adam.step()
    expected = network.state_dict()
    for name, tensor in record.tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-4)


def watch_weights(monkeypatch):
    """The network's weights at the start of every step, in a list."""
    seen = []

    def objective(score, x, sigma, **options):
        seen.append([p.detach().clone() for p in score.network.parameters()])
        return denoising_score_matching(score, x, sigma, **options)

    monkeypatch.setattr(run, "denoising_score_matching", objective)
    return seen


def test_the_moving_average_of_a_short_run_has_forgotten_its_first_weights():
    """300 steps: an average of the steps themselves, with the memory of the last tenth."""
    config = load_config(ema_decay=0.999)
    weight = 1.0  # of step 0
    for step in range(1, 300):
        weight *= config.ema_decay_at(step)
    assert weight < 1e-10
    assert config.ema_decay_at(0) == 0
    assert config.ema_decay_at(10_000) == 0.999


def test_moving_average_is_its_recurrence(run_training, tiny_config, tmp_path, monkeypatch):
    """w̄ₖ = dₖ w̄ₖ₋₁ + (1 − dₖ) wₖ with dₖ = min(d, k/(k + 9)), k from 0."""
    seen = watch_weights(monkeypatch)
    record = run_training(tiny_config(ema_decay=0.25, checkpoint_every=6), tmp_path)
    state = record.tensors("state")
    weights = record.tensors()
    names = [name for name, _ in build.build_network(record.config).named_parameters()]
    assert sorted(names) == sorted(weights)
    for i, name in enumerate(names):
        trajectory = [step[i] for step in seen[1:]]  # after each step but the last
        trajectory.append(state[f"network.{name}"])
        average = trajectory[0].double()
        for decay, value in zip((1 / 10, 2 / 11, 1 / 4, 1 / 4, 1 / 4), trajectory[1:], strict=True):
            average = decay * average + (1 - decay) * value.double()
        torch.testing.assert_close(weights[name], average.float(), rtol=1e-4, atol=1e-6)
        assert torch.equal(weights[name], state[f"average.{name}"])


def test_without_a_moving_average_the_weights_are_the_networks(run_training, tiny_config, tmp_path):
    record = run_training(tiny_config(ema_decay=0.0), tmp_path)
    state = record.tensors("state")
    assert not [name for name in state if name.startswith("average")]
    for name, tensor in record.tensors().items():
        assert torch.equal(tensor, state[f"network.{name}"])


def test_gradient_clipping_bounds_the_update(run_training, tiny_config, tmp_path):
    """A clip far below Adam's 1e-8 leaves steps of at most rate · clip/1e-8."""
    config = tiny_config(steps=2, ema_decay=0.0, rate_schedule="constant", gradient_clip=1e-12)
    record = run_training(config, tmp_path / "clipped")
    free = run_training(tiny_config(steps=2, ema_decay=0.0), tmp_path / "free")
    torch.manual_seed(config.seed)
    start = build.build_network(config.to_dict()).state_dict()

    def moved(run):
        return max(float((t - start[name]).abs().max()) for name, t in run.tensors().items())

    assert moved(record) < 2.1 * 1e-3 * 1e-4
    assert moved(free) > 1e-3


def test_weight_power_changes_the_loss(run_training, tiny_config, tmp_path):
    """Unweighted, the small levels have losses of about D/2σ²: hundreds of times larger."""
    weighted = run_training(tiny_config(steps=1), tmp_path / "2").history["loss"][0]
    plain = run_training(tiny_config(steps=1, weight_power=0.0), tmp_path / "0").history["loss"][0]
    assert plain > 10 * weighted


# --- devices and precision ---------------------------------------------------------------------


def test_bfloat16_training_keeps_float32_weights(run_training, tiny_config, tmp_path, refinenet):
    record = run_training(tiny_config(steps=2), tmp_path, precision="bf16-mixed")
    assert record.sessions[-1]["precision"] == "bf16-mixed"
    assert {tensor.dtype for tensor in record.tensors().values()} == {torch.float32}
    assert all(math.isfinite(loss) for loss in record.history["loss"])


def test_float16_is_float16_on_a_cpu_too_and_learns(run_training, tiny_config, tmp_path, refinenet):
    """Loss scaling begins too high and leaves the first steps out, as on a GPU."""
    record = run_training(tiny_config(steps=20, log_every=1), tmp_path, precision="16-mixed")
    assert record.sessions[-1]["precision"] == "16-mixed"
    losses = record.history["loss"]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_images_and_noise_are_never_rounded(
    run_training, tiny_config, tmp_path, refinenet, monkeypatch, precision
):
    """In bfloat16 a pixel near 1 would move by up to 0.002, and dequantization would be undone."""
    seen = set()

    def look(score, x, sigma, *, noise, **options):
        seen.update(t.dtype for t in (x, sigma, noise))
        return denoising_score_matching(score, x, sigma, noise=noise, **options)

    monkeypatch.setattr(run, "denoising_score_matching", look)
    run_training(tiny_config(steps=1), tmp_path, precision=precision)
    assert seen == {torch.float32}


def test_precision_names(run_training, tiny_config, tmp_path):
    cpu = torch.device("cpu")
    assert devices.pick_precision("32-true", cpu) == "32-true"
    assert devices.pick_precision("auto", cpu) in ("bf16-mixed", "32-true")
    assert devices.pick_precision("auto", torch.device("mps")) == "32-true"
    with pytest.raises(
        NCSNError, match="unknown precision 'fp8'; known: auto, bf16-mixed, 16-mixed, 32-true"
    ):
        run_training(tiny_config(), tmp_path, precision="fp8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "16-mixed"), ((8, 0), "bf16-mixed")], ids=["T4", "A100"]
)
def test_precision_follows_the_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.pick_precision("auto", torch.device("cuda", 0)) == expected


@pytest.mark.parametrize(("capability", "expected"), [((6, 1), False), ((7, 0), True)])
def test_compiling_needs_a_gpu_that_triton_knows(monkeypatch, capability, expected):
    monkeypatch.setattr(devices, "_compiles", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.can_compile(torch.device("cuda", 0)) is expected


def test_compiling_for_the_cpu_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(devices, "_compiles", lambda device: True)
    monkeypatch.setattr(
        shutil, "which", lambda name: f"/usr/bin/{name}" if "clang" in name else None
    )
    assert devices.can_compile(torch.device("cpu"))
    assert not devices.can_compile(torch.device("mps"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not devices.can_compile(torch.device("cpu"))


def test_a_compiler_that_is_there_and_broken_costs_a_line(monkeypatch):
    def broken(function, **options):
        raise RuntimeError("CppCompileError: command failed\n/bin/false -O3")

    devices._compiles.cache_clear()
    networks.refinenet._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.warns(UserWarning, match=r"without torch.compile.* CppCompileError: [a-z ]+$"):
        assert not devices.can_compile(torch.device("cpu"))
    assert not devices.can_compile(torch.device("cpu"))  # and is not tried again
    with pytest.raises(NCSNError, match=r"does not work .* 'cpu'\. Leave out --compile"):
        devices.compilation(True, torch.device("cpu"), 0)
    assert devices.compilation(None, torch.device("cpu"), 10_000) is False
    devices._compiles.cache_clear()


@pytest.mark.slow
def test_a_run_goes_on_in_one_line_beside_a_broken_compiler(tmp_path):
    """The whole way: environment, command line, a run that is long enough to be compiled."""
    small = ("channels=2", "steps=2000", "batch_size=4", "log_every=1", "checkpoint_every=1")
    command = [sys.executable, "-m", "ncsn_core", "train", "mnist", "--minutes", "0"]
    command += ["--device", "cpu", "--folder", tmp_path / "run", *(f"--set={s}" for s in small)]
    broken = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | broken, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "torch.compile" in line]
    assert line.startswith("ncsn: going on without torch.compile, which fails here: ")
    assert pretrained.load(tmp_path / "run").sessions[-1]["compiled"] is False


def test_only_long_runs_are_compiled_and_a_run_stays_what_it_was(
    tmp_path, monkeypatch, tiny_config, run_training
):
    made = []

    def compile_normalizations(self, compiled):
        made.append(compiled)
        self.compiled = compiled

    monkeypatch.setattr(devices, "can_compile", lambda device: True)
    monkeypatch.setattr(SmallNetwork, "compile_normalizations", compile_normalizations)
    for steps in (999, 1000):
        run_training(tiny_config(steps=steps), tmp_path / f"{steps}", compile=None, minutes=0.0)
    run_training(tiny_config(steps=2000), tmp_path / "999", compile=None, minutes=0.0)
    run_training(tiny_config(steps=100), tmp_path / "1000", compile=None, minutes=0.0)
    assert made == [False, True, False, True]


def test_autocast_follows_the_precision():
    assert devices.autocast_dtype("bf16-mixed") is torch.bfloat16
    assert devices.autocast_dtype("16-mixed") is torch.float16
    assert devices.autocast_dtype("32-true") is None


def test_device_names(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.pick_device(" CPU ") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.pick_device("cuda:1") == torch.device("cuda", 1)
    assert devices.pick_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert devices.pick_device() == devices.pick_device("cuda") == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device() == torch.device("mps")


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cuda", "'cuda' is not here; here are cpu:0"),
        ("cuda:7", "'cuda:7' is not here"),
        ("mps", "'mps' is not here"),
        ("cpu:1", "'cpu:1' is not here"),
        ("gpu", "unknown device 'gpu'; known: auto, cpu, cuda, cuda:1, mps"),
        ("xpu", "unknown device 'xpu'"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("cuda:", "unknown device 'cuda:'"),
        ("", "unknown device ''"),
    ],
)
def test_a_device_that_is_not_here_is_one_sentence(
    monkeypatch, run_training, tiny_config, tmp_path, device, says
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(NCSNError, match=re.escape(says)):
        devices.pick_device(device)
    with pytest.raises(NCSNError, match=re.escape(says)):
        run_training(tiny_config(), tmp_path / "run", device=device)
    with pytest.raises(NCSNError, match=re.escape(says)):
        load_images("mnist", "test", device=device)
    for form in ("score", "classifier"):
        model = pretrained.load({"score": "mnist14_ncsn", "classifier": "digit_classifier"}[form])
        with pytest.raises(NCSNError, match=re.escape(says)):
            getattr(model, form)(device)


# --- other objectives and networks -------------------------------------------------------------


VARIANTS = {
    "sliced": {"objective": "sliced"},
    "energy": {"parametrization": "energy"},
    "unconditional": {"conditional": False},
    "plain norm": {"keep_means": False},
    "no norm": {"normalize": False},
    "one level": {"levels": 1, "sigma_max": 0.01},
    "small images": {"image_size": 14},
    "continuous": {"parametrization": "continuous", "sigma_max": 8.0, "data_std": 0.3},
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_trains_resumes_and_loads(
    run_training, tiny_config, tmp_path, refinenet, changes, precision
):
    config = tiny_config(**{"image_size": 14, "steps": 2, "checkpoint_every": 1} | changes)
    whole = run_training(config, tmp_path / "whole", precision=precision)
    run_training(config, tmp_path / "pieces", minutes=0.0, precision=precision)
    pieces = run_training(config, tmp_path / "pieces", precision=precision)
    assert pieces.history == whole.history
    for name, weights in whole.tensors().items():
        assert torch.equal(weights, pieces.tensors()[name]), name
    score = pretrained.load(tmp_path / "whole").score()
    x = torch.rand(1, 1, 14, 14)
    with torch.no_grad():
        assert score(x, score.sigmas[:1]).shape == x.shape


def test_the_sliced_loss_is_the_objectives(run_training, tiny_config, tmp_path, few_images):
    config = tiny_config(objective="sliced", steps=1)
    record = run_training(config, tmp_path)
    torch.manual_seed(config.seed)
    network = SmallNetwork(config.to_dict())
    score = NoiseConditionalScore(network, config.sigmas)
    _, x, generator = next(batches(few_images, config.batch_size, seed=config.seed))
    sigma = draw_levels(config.sigmas, len(x), generator)
    loss = sliced_score_matching_vr(score, x, sigma, generator=generator)
    assert record.history["loss"] == [round(float(loss.detach().mean()), 4)]


def test_the_continuous_loss_is_the_objectives(
    run_training, tiny_config, tmp_path, few_images, refinenet
):
    config = tiny_config(parametrization="continuous", steps=1, data_mean=0.1, data_std=0.3)
    record = run_training(config, tmp_path)
    torch.manual_seed(config.seed)
    network = networks.build_network(config.to_dict())
    score = ContinuousScore(network, config.sigmas, data_mean=0.1, data_std=0.3)
    _, x, generator = next(batches(few_images, config.batch_size, seed=config.seed))
    sigma = draw_log_uniform(config.sigma_max, config.sigma_min, len(x), generator)
    weight = partial(denoiser_weight, data_std=0.3)
    loss = denoising_score_matching(score, x, sigma, weight=weight, generator=generator)
    assert record.history["loss"] == [pytest.approx(float(loss.detach().mean()), abs=1e-3)]


def test_a_run_from_before_a_setting_existed_is_continued(run_training, tiny_config, tmp_path):
    config = tiny_config(steps=2, checkpoint_every=1)
    record = run_training(config, tmp_path, minutes=0.0)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["config"]["data_std"]
    manifest["sha256"] = checkpoints.manifest_sha256(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert record.manifest["step"] == 1
    assert run_training(config, tmp_path).manifest["step"] == 2


@pytest.mark.parametrize("changes", [{"objective": "sliced"}, {"parametrization": "energy"}])
def test_second_derivatives_and_compiled_normalizations_exclude_each_other(
    run_training, tiny_config, tmp_path, changes
):
    with pytest.raises(NCSNError, match="compiled normalizations have no second derivatives"):
        run_training(tiny_config(**changes), tmp_path / "run", compile=True)


# --- data that does not fit --------------------------------------------------------------------


def test_a_batch_larger_than_the_data_is_refused(run_training, tiny_config, tmp_path):
    config = tiny_config(batch_size=65, train_images=None)
    with pytest.raises(ValueError, match="between 1 and the number of images, 64; got 65"):
        run_training(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_another_shape_are_refused(run_training, tiny_config, tmp_path):
    config = tiny_config(image_channels=3, image_size=32)
    with pytest.raises(NCSNError, match=r"shape \(1, 28, 28\); the configuration says \(3, 32"):
        run_training(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train_images_uses_the_first_ones(run_training, tiny_config, tmp_path, few_images):
    record = run_training(tiny_config(steps=1, train_images=8), tmp_path)
    assert record.provenance["images"] == 8
    assert record.provenance["data_sha256"] == provenance.tensor_sha256(few_images[:8])


# --- the digit classifier ----------------------------------------------------------------------


@pytest.fixture
def two_digits(monkeypatch):
    """A hundred images of two easy classes: ink above, ink below."""
    labels = torch.arange(100) % 2
    images = torch.zeros(100, 1, 28, 28, dtype=torch.uint8)
    images[labels == 0, :, 4:12] = 200
    images[labels == 1, :, 16:24] = 200
    monkeypatch.setattr(classifier, "load_images", lambda *args, **options: images)
    monkeypatch.setattr(classifier, "load_labels", lambda *args, **options: labels)


@pytest.mark.usefixtures("two_digits")
def test_classifier_learns_and_is_kept_with_its_accuracy(tmp_path):
    budget = {"epochs": 3, "batch_size": 10, "train_images": 90, "test_images": 60}
    record = train_classifier(tmp_path, **budget, progress=False)
    assert record.kind == "classifier"
    assert record.config["train_images"] == 90
    assert record.metrics == {"test_accuracy": 1.0, "test_images": 60}
    assert len(record.history["loss"]) == 3
    assert record.history["loss"][-1] < 0.5
    assert pretrained.load(tmp_path).classifier()(torch.rand(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.usefixtures("two_digits")
def test_a_diverged_classifier_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(NonFiniteLossError, match="smaller learning_rate"):
        train_classifier(
            tmp_path / "run", epochs=1, batch_size=20, learning_rate=1e30, progress=False
        )
    assert not (tmp_path / "run").exists()


def test_shift_moves_by_at_most_two_pixels_and_fills_with_zeros():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1.0
    seen = set()
    for _ in range(300):
        moved = shift(image)
        assert moved.shape == image.shape
        assert moved.sum() == 1.0
        seen.add(tuple((moved[0, 0].nonzero()[0] - 4).tolist()))
    assert seen == {(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    assert shift(torch.ones(1, 1, 9, 9), pixels=0).all()


# --- images of one's own -----------------------------------------------------------------------


def test_own_images_train_without_those_held_out_and_go_on(run_training, tmp_path):
    images = torch.randint(256, (20, 1, 8, 8)).byte()
    found = read_images(images)
    config = config_for(found, "smoke", channels=2, steps=2, log_every=1, checkpoint_every=1)
    assert (config.preset, config.dataset, config.batch_size) == ("own", "own", 16)
    assert (config.image_channels, config.image_size) == (1, 8)
    first = run_training(config, tmp_path / "run", images=images.numpy(), minutes=0.0)
    assert first.manifest["step"] == 1
    done = run_training(config, tmp_path / "run", images=images / 255)
    assert done.manifest["step"] == 2
    train, held_out = found.split()
    assert (len(train), len(held_out)) == (18, 2)
    assert done.provenance["data_sha256"] == tensor_sha256(train)
    assert done.provenance["images"] == 18


def test_a_run_goes_on_with_its_own_images_only(run_training, tmp_path):
    images = torch.randint(256, (20, 1, 8, 8)).byte()
    config = config_for(read_images(images), channels=2, steps=2, log_every=1, checkpoint_every=1)
    run_training(config, tmp_path / "run", images=images, minutes=0.0)
    with pytest.raises(NCSNError, match="trained on other images than these"):
        run_training(config, tmp_path / "run", images=255 - images)
    with pytest.raises(NCSNError, match="none were given: pass images="):
        run_training(config, tmp_path / "other")


def test_own_images_are_known_by_their_pixels_wherever_they_are(run_training, tmp_path):
    """Also in a finished run, which would otherwise answer for images that it has never seen."""
    images = torch.randint(256, (20, 1, 8, 8)).byte()
    for name, pixels in (("here", images), ("there", images), ("others", 255 - images)):
        np.save(tmp_path / f"{name}.npy", pixels[:, 0].numpy())
    settings = {"channels": 2, "steps": 2, "log_every": 1, "checkpoint_every": 1}

    def train(name, **more):
        own = read_images(tmp_path / f"{name}.npy")
        return run_training(config_for(own, **settings), tmp_path / "run", images=own, **more)

    train("here", minutes=0.0)
    assert train("there").manifest["step"] == 2
    with pytest.raises(NCSNError, match="trained on other images than these"):
        train("others")


def test_a_batch_holds_at_most_the_images_there_are():
    found = read_images(torch.randint(256, (10, 1, 8, 8)).byte())
    assert config_for(found, "cpu").batch_size == 9
    assert config_for(found, "cpu", batch_size=64).batch_size == 64
    assert config_for(found, "gpu").channels == 64
    with pytest.raises(ValueError, match=r"even size, .*these have 7 × 7"):
        config_for(read_images(torch.rand(4, 1, 7, 7)))
