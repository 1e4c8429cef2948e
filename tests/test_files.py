"""Writing without halves, and one writer at a time."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ncsn_core.errors import NCSNError, UnwritableError
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
