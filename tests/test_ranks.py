"""Several processes give what one gives: real ones, started by torchrun, over gloo on the CPU."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from ncsn_core import checkpoints, ranks
from ncsn_core.errors import NCSNError
from ncsn_core.generation import generate

SETTINGS = {
    "channels": 2,
    "train_images": 64,
    "batch_size": 8,
    "steps": 60,
    "rate_schedule": "constant",
    "log_every": 1,
    "checkpoint_every": 3,
}
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def command(folder, processes, **changes):
    """`ncsn train`, by itself or under torchrun."""
    settings = [f"--set={name}={value}" for name, value in (SETTINGS | changes).items()]
    start = [sys.executable, "-m", *(TORCHRUN if processes == 2 else ()), "ncsn_core"]
    where = ["--folder", str(folder), "--device", "cpu", "--precision", "32-true"]
    return [*start, "train", "mnist", *where, *settings]


def environment():
    """One thread a process, and nothing compiled."""
    quiet = {"TORCHDYNAMO_DISABLE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"} | quiet


def run(*arguments, **changes):
    return subprocess.run(
        command(*arguments, **changes),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The record of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    done = run(folder, 1)
    assert done.returncode == 0, done.stderr
    return checkpoints.load(folder)


def assert_same_run(record, expected):
    """Equal to rounding, which Adam's first steps, of one size whatever the gradient's, enlarge.

    Gradients that are not averaged change five of the first ten losses by 0.4 to 1.4 %.
    """
    assert record.history["step"] == expected.history["step"]
    found, wanted = (torch.tensor(r.history["loss"]) for r in (record, expected))
    torch.testing.assert_close(found[:10], wanted[:10], rtol=5e-4, atol=0)
    torch.testing.assert_close(found, wanted, rtol=5e-3, atol=0)


def test_two_processes_train_like_one(undisturbed, tmp_path):
    done = run(tmp_path / "run", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("60 of 60 steps") == 1, "one of them speaks"
    record = checkpoints.load(tmp_path / "run")
    assert record.provenance["processes"] == 2
    assert_same_run(record, undisturbed)


def test_a_process_that_is_killed_ends_the_run_with_one_message_and_one_goes_on(
    undisturbed, tmp_path
):
    folder = tmp_path / "run"
    job = subprocess.Popen(
        command(folder, 2, steps=100_000),
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

    assert checkpoints.load(folder).manifest["step"] < 60
    done = run(folder, 1)  # one process goes on where two were
    assert done.returncode == 0, done.stderr
    assert_same_run(checkpoints.load(folder), undisturbed)


SAMPLE = """
import sys
from pathlib import Path
import numpy as np
from ncsn_core import checkpoints, ranks
from ncsn_core.generation import generate

model, folder, count = sys.argv[1:]
samples = generate(
    checkpoints.load(model).score(), (1, 28, 28), int(count), batch_size=2, steps_per_level=1,
    folder=None if folder == "none" else folder,
)
np.save(Path(model).parent / f"{Path(folder).name}-{ranks.index()}.npy", samples.numpy())
ranks.leave()
"""


def test_samples_do_not_depend_on_the_number_of_processes(record, tmp_path):
    script = tmp_path / "sample.py"
    script.write_text(SAMPLE)

    def sample(processes, folder, count):
        launcher = [sys.executable, *(("-m", *TORCHRUN[:-1]) if processes == 2 else ())]
        arguments = [str(script), str(record.folder), str(folder), str(count)]
        subprocess.run([*launcher, *arguments], env=environment(), check=True, timeout=240)
        return [np.load(tmp_path / f"{folder.name}-{index}.npy") for index in range(processes)]

    (alone,) = sample(1, tmp_path / "alone", 7)
    first, second = sample(2, tmp_path / "together", 5)  # the third batch is cut short
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[:4], alone[:4])
    first, second = sample(2, tmp_path / "together", 7)  # and goes on
    np.testing.assert_array_equal(first, alone)
    np.testing.assert_array_equal(second, alone)


def test_a_process_by_itself_is_one_of_one():
    assert (ranks.count(), ranks.index(), ranks.local_index()) == (1, 0, 0)
    assert ranks.share(10) == slice(0, 10)
    assert ranks.first_to_report()
    ranks.wait()


def launched(monkeypatch, rank, world):
    """Pretend that a launcher started this process."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "TORCHELASTIC_RUN_ID": "test"}
    for name, value in here.items():
        monkeypatch.setenv(name, str(value))


def test_shares_are_equal_and_make_up_the_whole(monkeypatch):
    taken = []
    for rank in range(4):
        launched(monkeypatch, rank, 4)
        taken += range(12)[ranks.share(12)]
    assert taken == list(range(12))
    with pytest.raises(NCSNError, match="batch of 10 cannot be divided among 4"):
        ranks.share(10)


def test_one_rank_reports_what_all_of_them_suffer(monkeypatch):
    launched(monkeypatch, 1, 2)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [ranks.first_to_report() for _ in range(3)] == [True, False, False]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # the launcher's next attempt
    assert ranks.first_to_report()


def test_errors_of_lost_connections_become_one_and_others_stay(monkeypatch):
    lost = RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError, match="closed by peer"), ranks.explained("Go on."):
        raise lost
    launched(monkeypatch, 0, 2)
    with pytest.raises(NCSNError, match="another of the 2 processes is gone"):  # noqa: SIM117
        with ranks.explained("Go on."):
            raise lost
    with pytest.raises(RuntimeError, match="shape"), ranks.explained("Go on."):
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("other", [True, False])
def test_a_flag_is_up_in_all_ranks_only_if_it_is_up_in_each(monkeypatch, other):
    def with_the_other_rank(tensor, operation):
        assert operation == dist.ReduceOp.MIN
        tensor.clamp_(max=float(other))

    assert ranks.all_of(other) is other  # by itself
    launched(monkeypatch, 0, 2)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", with_the_other_rank)
    assert ranks.all_of(True) is other
    assert ranks.all_of(False) is False


def test_the_first_rank_reports_when_the_launcher_is_gone(monkeypatch):
    def gone(*_, **__):
        raise dist.DistNetworkError("The client socket has failed to connect")

    monkeypatch.setattr(dist, "TCPStore", gone)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    reports = []
    for rank in range(3):
        launched(monkeypatch, rank, 3)
        reports.append(ranks.first_to_report())
    assert reports == [True, False, False]


def test_a_batch_of_another_process_that_cannot_be_seen_is_named(record, tmp_path, monkeypatch):
    launched(monkeypatch, 0, 2)
    monkeypatch.setattr(ranks, "wait", lambda: None)
    options = {"batch_size": 2, "steps_per_level": 1, "folder": tmp_path / "samples"}
    with pytest.raises(NCSNError, match="batch 1, which another process has drawn, is not in"):
        generate(record.score(), (1, 28, 28), 4, progress=False, **options)
    assert (tmp_path / "samples" / "batch_00000_of_2").is_dir()


def test_several_processes_need_a_folder_for_their_samples(record, monkeypatch):
    launched(monkeypatch, 0, 2)
    with pytest.raises(NCSNError, match="through a folder"):
        generate(record.score(), (1, 28, 28), 2, steps_per_level=1)
