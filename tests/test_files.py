"""Writing without halves, and one writer at a time."""

import errno
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ncsn_core import files
from ncsn_core.errors import NCSNError, NCSNWarning, UnwritableError
from ncsn_core.files import exclusive, temporary, write_atomically

HOLDER = """
import sys, time
from pathlib import Path
from ncsn_core.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is writing into `tmp_path / "run"`."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process, folder
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_second_process_is_refused_at_once_and_told_why(holder):
    _, folder = holder
    with pytest.raises(NCSNError, match=r"another process is writing into .*run\. Wait"):
        exclusive(folder).__enter__()


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock(holder):
    process, folder = holder
    process.kill()
    process.wait()
    with exclusive(folder):
        pass


def test_the_lock_ends_with_the_block_and_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), exclusive(tmp_path):
            raise KeyError
    with exclusive(tmp_path):
        pass


def test_one_folder_may_be_held_twice_by_nobody_in_one_process_either(tmp_path):
    with exclusive(tmp_path), pytest.raises(NCSNError, match="another process"):
        exclusive(tmp_path).__enter__()


STRANGERS = [
    "a.tmp",
    ".notes.tmp.bak",
    ".thesis.tex.1234.tmp",
    ".ncsn-12345.tmp",
    ".ncsn-0123abcd.tmp.old.bak",
    "other/.ncsn-0123abcd.tmp",  # of another run, which may be writing it
    ".ncsn-89abcdef.tmp/inside",  # a folder of such a name
]


def test_what_a_killed_process_left_unfinished_goes_away_and_nothing_else(tmp_path):
    owned = tmp_path / "executed"
    kept = [tmp_path / name for name in STRANGERS]
    left = [temporary(tmp_path / "a.json"), temporary(owned / "b.ipynb", ".ipynb")]
    for path in kept + left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    with exclusive(tmp_path, [owned]):
        assert all(path.exists() for path in kept)
        assert not any(path.exists() for path in left)


def test_a_file_that_is_being_written_has_the_name_of_a_temporary(tmp_path, monkeypatch):
    """And is gone when the next process takes the folder."""
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.extend(tmp_path.iterdir()))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: None)  # as if it were killed
    monkeypatch.setattr(Path, "replace", lambda path, target: path)
    write_atomically(tmp_path / "x", b"content")
    monkeypatch.undo()
    assert [path.exists() for path in seen] == [True]
    with exclusive(tmp_path):
        assert not seen[0].exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnwritableError, match="file/run cannot be written to"):
        exclusive(tmp_path / "file" / "run").__enter__()


def test_a_failed_write_keeps_what_was_there_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnwritableError, match=r"x could not be written: .*No space left"):
        write_atomically(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# --- where the file system has no locks ---------------------------------------------------------


@pytest.fixture(params=["ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK"])
def no_locks(request, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    number = getattr(errno, request.param)

    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "GRACE", 0.2)


@contextmanager
def taken(folder):
    """A folder that is held, after the warning."""
    with ExitStack() as stack:
        with pytest.warns(NCSNWarning, match=r"run has no locks: a file \.lock-soft stands in"):
            stack.enter_context(exclusive(folder))
        yield


def test_without_locks_a_file_stands_in_for_one_and_a_warning_says_so(no_locks, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()  # of a time when it lay on a disk
    for _ in range(2):
        with taken(run):
            held = f"process {os.getpid()} on .*, since 20.*; if that one has ended, delete .*soft"
            with pytest.raises(NCSNError, match=held):
                taken(run).__enter__()
    assert [path.name for path in run.iterdir()] == [".lock"]


def test_a_soft_lock_of_a_process_that_has_ended_is_taken_over(no_locks, tmp_path):
    lock = tmp_path / "run" / ".lock-soft"
    with taken(tmp_path / "run"):
        _, *host = lock.read_text().splitlines()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock.write_text("\n".join([str(ended.pid), *host, ""]))
    with taken(tmp_path / "run"):
        assert lock.read_text().splitlines()[0] == str(os.getpid())


def test_a_soft_lock_of_another_machine_is_named_and_kept(no_locks, tmp_path):
    lock = tmp_path / "run" / ".lock-soft"
    lock.parent.mkdir()
    lock.write_text("4711\nelsewhere\n")
    os.utime(lock, (0, 1_700_000_000))
    with pytest.raises(NCSNError, match=r"4711 on elsewhere, since 2023-11-1.*delete .*-soft"):
        taken(tmp_path / "run").__enter__()
    assert lock.exists()
    lock.unlink()
    with taken(tmp_path / "run"):
        pass
