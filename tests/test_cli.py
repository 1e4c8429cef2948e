"""The command line: what it prints, what it writes, and its exit codes."""

import sys
from pathlib import Path

import pytest

from ncsn_core import checkpoints, cli
from ncsn_core.config import presets, profiles

TINY = ["--set", "steps=2", "--set", "log_every=1", "--set", "checkpoint_every=1"]
TINY += ["--set", "train_images=16", "--set", "batch_size=4"]


@pytest.fixture
def ncsn(monkeypatch, capsys):
    """Run `ncsn ARGUMENTS`; returns exit code, stdout and stderr."""
    monkeypatch.setattr(cli.training, "can_compile", lambda device: False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ncsn", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def tiny_run(ncsn, tmp_path: Path) -> Path:
    """The folder of a network trained for two steps."""
    folder = tmp_path / "run"
    code, _, err = ncsn("train", "mnist", "--folder", folder, "--device", "cpu", *TINY)
    assert code == 0, err
    return folder


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["sample", "--help"], ["evaluate", "--help"]]
)
def test_help_shows_an_example_or_the_options(ncsn, arguments):
    code, out, _ = ncsn(*arguments)
    assert code == 0
    assert "Usage: ncsn" in out


def test_help_of_train_lists_presets_and_profiles(ncsn):
    _, out, _ = ncsn("train", "--help")
    for name in (*presets(), *profiles()):
        assert name in out


def test_training_writes_a_checkpoint_and_says_where(ncsn, tiny_run):
    assert checkpoints.load(tiny_run).manifest["step"] == 2


def test_training_again_with_more_steps_goes_on(ncsn, tiny_run):
    more = [s.replace("steps=2", "steps=3") for s in TINY]
    code, out, _ = ncsn("train", "mnist", "--folder", tiny_run, "--device", "cpu", *more)
    assert code == 0
    assert "3 of 3 steps" in out
    plans = checkpoints.load(tiny_run).provenance["plans"]
    assert plans == [{"from_step": 0, "steps": 2}, {"from_step": 2, "steps": 3}]


def test_sampling_writes_an_image(ncsn, tiny_run, tmp_path):
    from PIL import Image

    out = tmp_path / "grid.png"
    code, _, err = ncsn(
        "sample", tiny_run, "--count", 4, "--steps", 1, "--out", out, "--device", "cpu"
    )
    assert code == 0, err
    with Image.open(out) as image:
        assert image.size == (2 * 30 + 2, 2 * 30 + 2)


def test_export_ships_the_weights_and_not_the_training_state(ncsn, tiny_run, tmp_path):
    code, _, err = ncsn("export", tiny_run, tmp_path / "shipped")
    assert code == 0, err
    run, shipped = checkpoints.load(tiny_run), checkpoints.load(tmp_path / "shipped")
    assert "state" in run.manifest["files"]
    assert list(shipped.manifest["files"]) == ["weights"]
    assert shipped.weights_sha256 == run.weights_sha256
    assert shipped.config == run.config


def test_a_run_is_not_exported_onto_itself(ncsn, tiny_run):
    code, _, err = ncsn("export", tiny_run, Path(tiny_run) / ".." / Path(tiny_run).name)
    assert code == 1
    assert "onto itself" in err
    assert "state" in checkpoints.load(tiny_run).manifest["files"]


def test_models_are_listed_and_verified(ncsn):
    code, out, err = ncsn("models")
    assert code == 0, err
    for name in checkpoints.available():
        assert f"{name}:" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "mnst"], "known: mnist, fashion_mnist, cifar10, celeba"),
        (["train", "mnist", "--profile", "tpu"], "known: smoke, cpu, gpu"),
        (["train", "mnist", "--set", "step=3"], "unknown setting 'step'"),
        (["train", "mnist", "--set", "steps"], "NAME=VALUE"),
        (["train", "mnist", "--set", "batch_size=99999"], "number of images"),
        (["train", "mnist", "--set", "sigma_last=2"], "must decrease"),
        (["sample", "no-such-model"], "unknown checkpoint 'no-such-model'"),
        (["evaluate", "no-such-model"], "unknown checkpoint 'no-such-model'"),
    ],
)
def test_mistakes_end_with_a_message_and_no_traceback(ncsn, tmp_path, arguments, says):
    if arguments[0] == "train":
        arguments = [*arguments, "--folder", tmp_path / "run"]
    code, _, err = ncsn(*arguments)
    assert code == 1
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_is_not_there_names_its_place(ncsn, tmp_path, monkeypatch):
    monkeypatch.setenv("NCSN_DATA", str(tmp_path / "nowhere"))
    code, _, err = ncsn("train", "cifar10", "--folder", tmp_path / "run")
    assert code == 1
    assert "cifar-10-batches-py" in err
    assert str(tmp_path / "nowhere") in err


def test_an_interrupt_exits_with_130_and_keeps_the_run(ncsn, tmp_path, monkeypatch):
    steps = []
    advance = cli.training._Run.advance

    def interrupted(self, *arguments):
        advance(self, *arguments)
        steps.append(self.step)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.training._Run, "advance", interrupted)
    folder = tmp_path / "run"
    code, _, err = ncsn("train", "mnist", "--folder", folder, "--device", "cpu", *TINY)
    assert code == 130
    assert "interrupted" in err
    assert checkpoints.load(folder).manifest["step"] == steps[-1] == 1


def test_every_command_works_as_a_module():
    import subprocess

    result = subprocess.run(
        [sys.executable, "-m", "ncsn_core", "--version"], capture_output=True, text=True
    )
    assert result.returncode == 0
    assert "ncsn" in result.stdout
