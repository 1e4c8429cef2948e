"""Several processes give what one gives: real ones, started by torchrun, over gloo on the CPU."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from ncsn_core import checkpoints, distributed, generation, pretrained, training
from ncsn_core.config import load_config
from ncsn_core.errors import NCSNError
from ncsn_core.generation import sample
from ncsn_core.networks.build import new_score
from ncsn_core.run import Run

SETTINGS = {
    "channels": 2,
    "train_images": 64,
    "batch_size": 8,
    "steps": 60,
    "rate_schedule": "constant",
    "log_every": 1,
    "checkpoint_every": 3,
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WHERE = {"device": "cpu", "precision": "32-true"}


def arguments(folder, **changes):
    """Those of `ncsn`, to train in a folder."""
    settings = [f"--set={name}={value}" for name, value in (SETTINGS | changes).items()]
    where = [f"--{name}={value}" for name, value in WHERE.items()]
    return ["train", "mnist", f"--folder={folder}", *where, *settings]


def environment():
    """One thread a process, and nothing compiled."""
    quiet = {"TORCHDYNAMO_DISABLE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"} | quiet


@pytest.fixture(scope="module")
def one_thread():
    """As the two processes have it: their samples are compared to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(folder):
    """What the command does, in this process."""
    config = load_config("mnist", **SETTINGS)
    return training.train(config, folder, **WHERE, compile=False, progress=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, one_thread):
    """The record of one process."""
    return train(tmp_path_factory.mktemp("one") / "run")


def draw(model, folder, count):
    """Samples in batches of two."""
    score = pretrained.load(model).score()
    options = {"batch_size": 2, "steps_per_level": 1, "progress": False}
    return sample(score, count, folder=folder, **options)


WORK = """
import sys
import numpy as np
from ncsn_core import cli, distributed
from test_distributed import draw

here, *arguments = sys.argv[1:]
cli.cli(arguments, standalone_mode=False)
for count in (5, 7):  # the third batch is cut short, and then goes on
    samples = draw(f"{here}/run", f"{here}/samples", count)
    np.save(f"{here}/{count}-{distributed.global_rank()}.npy", samples.numpy())
distributed.close()
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of what two processes have trained and drawn, and what they said."""
    here = tmp_path_factory.mktemp("two")
    (here / "work.py").write_text(WORK)
    done = subprocess.run(
        [*TORCHRUN, str(here / "work.py"), str(here), *arguments(here / "run")],
        env=environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return here, done.stdout


def assert_same_run(record, expected):
    """Equal to rounding, which Adam's first steps, of one size whatever the gradient's, enlarge.

    Gradients that are not averaged change five of the first ten losses by 0.4 to 1.4 %.
    """
    assert record.history["step"] == expected.history["step"]
    found, wanted = (torch.tensor(r.history["loss"]) for r in (record, expected))
    torch.testing.assert_close(found[:10], wanted[:10], rtol=5e-4, atol=0)
    torch.testing.assert_close(found, wanted, rtol=5e-3, atol=0)


@pytest.mark.slow
def test_two_processes_train_like_one(undisturbed, together):
    here, said = together
    assert said.count("60 of 60 steps") == 1, "one of them speaks"
    record = pretrained.load(here / "run")
    assert record.sessions[-1]["processes"] == 2
    assert_same_run(record, undisturbed)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_samples_do_not_depend_on_the_number_of_processes(together):
    here, _ = together
    alone = draw(here / "run", None, 7).numpy()
    first, second = (np.load(here / f"5-{index}.npy") for index in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[:4], alone[:4])
    for index in range(2):
        np.testing.assert_array_equal(np.load(here / f"7-{index}.npy"), alone)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_one_message_and_one_goes_on(
    undisturbed, tmp_path
):
    folder = tmp_path / "run"
    job = subprocess.Popen(
        [*TORCHRUN, "-m", "ncsn_core", *arguments(folder, steps=100_000)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / checkpoints.MANIFEST).is_file():
            assert job.poll() is None, job.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = [p for p in psutil.Process(job.pid).children() if p.environ().get("RANK") == "1"]
        assert len(workers) == 1
        workers[0].send_signal(signal.SIGKILL)
        _, errors = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode != 0
    assert errors.count("another of the 2 processes is gone") == 1, errors
    assert "the same command goes on from there" in errors

    assert pretrained.load(folder).manifest["step"] < 60
    assert_same_run(train(folder), undisturbed)  # one process goes on where two were


def test_a_process_by_itself_is_one_of_one():
    assert (distributed.world_size(), distributed.global_rank(), distributed.local_rank()) == (
        1,
        0,
        0,
    )
    distributed.barrier()


def launched(monkeypatch, rank, world):
    """Pretend that a launcher started this process."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "TORCHELASTIC_RUN_ID": "test"}
    for name, value in here.items():
        monkeypatch.setenv(name, str(value))


def run_of(rank, world, **changes):
    """A run of one process among several."""
    fabric = SimpleNamespace(
        world_size=world,
        global_rank=rank,
        setup_optimizers=lambda optimizer: optimizer,
        _precision=SimpleNamespace(precision="32-true"),
    )
    config = load_config("mnist", **SETTINGS | changes)
    return Run(config, fabric, new_score(config.to_dict(), config.sigmas, "cpu"))


def test_shares_are_equal_and_make_up_the_whole():
    taken = []
    for rank in range(4):
        taken += range(8)[run_of(rank, 4).share]
    assert taken == list(range(8))
    with pytest.raises(NCSNError, match="batch of 10 cannot be divided among 4"):
        run_of(0, 4, batch_size=10)


def test_every_process_says_what_went_wrong_and_which_it_is(monkeypatch, ncsn):
    said = []
    for rank in range(3):
        launched(monkeypatch, rank, 3)
        said.append(ncsn("sample", "nothing", "--out", "nothing.png")[2])
    for rank, text in enumerate(said):
        who = f"[process {rank}] " if rank else ""
        assert text.startswith(f"{who}ncsn: unknown checkpoint 'nothing'; known: ")


def test_errors_of_lost_connections_become_one_and_others_stay(monkeypatch):
    lost = RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with (
        pytest.raises(RuntimeError, match="closed by peer"),
        distributed.lost_process_explained("Go on."),
    ):
        raise lost
    launched(monkeypatch, 0, 2)
    with pytest.raises(NCSNError, match="another of the 2 processes is gone"):  # noqa: SIM117
        with distributed.lost_process_explained("Go on."):
            raise lost
    with pytest.raises(RuntimeError, match="shape"), distributed.lost_process_explained("Go on."):
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("other", [True, False])
def test_a_flag_is_up_in_all_ranks_only_if_it_is_up_in_each(monkeypatch, other):
    def with_the_other_rank(tensor, operation):
        assert operation == dist.ReduceOp.MIN
        tensor.clamp_(max=float(other))

    assert distributed.all_of(other) is other  # by itself
    launched(monkeypatch, 0, 2)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", with_the_other_rank)
    assert distributed.all_of(True) is other
    assert distributed.all_of(False) is False


def test_a_batch_of_another_process_that_cannot_be_seen_is_named(record, tmp_path, monkeypatch):
    launched(monkeypatch, 0, 2)
    monkeypatch.setattr(generation, "barrier", lambda: None)
    options = {"batch_size": 2, "steps_per_level": 1, "folder": tmp_path / "samples"}
    with pytest.raises(NCSNError, match="batch 1, which another process has drawn, is not in"):
        sample(record.score(), 4, progress=False, **options)
    assert (tmp_path / "samples" / "batch_00000_of_2").is_dir()


def test_several_processes_need_a_folder_for_their_samples(record, monkeypatch):
    launched(monkeypatch, 0, 2)
    with pytest.raises(NCSNError, match="through a folder"):
        sample(record.score(), 2, steps_per_level=1)
