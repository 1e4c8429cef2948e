"""Nothing is lost: kills at random moments, full disks, folders that nobody may write to.

The few kills of the suite are many under `make stress`, by the same functions.
"""

import functools
import gzip
import hashlib
import http.server
import os
import resource
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import lives
import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from ncsn_book import execution
from ncsn_core import checkpoints, pretrained
from ncsn_core.data.download import Archive, fetch
from ncsn_core.errors import CorruptFileError, NCSNError, UnwritableError
from ncsn_core.files import exclusive

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and sends signals")


def often(few, many):
    """A few kills in the suite and many under `make stress`."""
    numbers = [few, pytest.param(many, marks=pytest.mark.stress)]
    return lambda test: pytest.mark.slow(pytest.mark.parametrize("kills", numbers)(test))


def works(test):
    """Training and sampling, in processes of their own."""
    kinds = pytest.mark.parametrize("work", [lives.train, lives.sample], ids=["train", "sample"])
    return pytest.mark.slow(kinds(test))


def no_unfinished_file(folder):
    return not list(folder.rglob("*.tmp*")) and not list(folder.rglob("*.partial"))


# --- kills ---------------------------------------------------------------------------------------


@often(3, 60)
def test_training_survives_kills_and_ends_with_the_losses_of_an_undisturbed_run(
    tmp_path, kills, figures
):
    steps, undisturbed, folder = 20 * kills, tmp_path / "undisturbed", tmp_path / "run"
    assert lives.finish(lives.train, undisturbed, steps) == 0
    seen = [0]

    def the_last_checkpoint_verifies():
        if not (folder / checkpoints.MANIFEST).exists():
            assert seen == [0]
            return
        record = pretrained.load(folder)
        for part in record.manifest["files"]:
            record.tensors(part)
        seen.append(record.manifest["step"])
        assert seen[-1] >= seen[-2], "a step that was saved is lost"
        with exclusive(folder):  # no lock outlives its process
            assert no_unfinished_file(folder)

    died = lives.kill_often(
        lives.train, folder, steps, kills=kills, longest=0.8, check=the_last_checkpoint_verifies
    )
    found, expected = pretrained.load(folder), pretrained.load(undisturbed)
    assert found.history == expected.history
    assert found.weights_sha256 == expected.weights_sha256
    for part in ("weights", "state"):
        ours, theirs = found.tensors(part), expected.tensors(part)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert died.total() >= kills / 2, "too many lives ended by themselves"
    assert len(set(seen)) > 1, "too little happened between the kills"
    figures("kills of training", kills=dict(died), checkpoints=len(set(seen)) - 1)


@often(3, 30)
def test_sampling_survives_kills_and_ends_with_the_samples_of_an_undisturbed_run(
    tmp_path, kills, figures
):
    count, undisturbed, folder = 16 * kills, tmp_path / "a" / "run", tmp_path / "b" / "run"
    assert lives.finish(lives.sample, undisturbed, count) == 0
    batches = set()

    def finished_batches_verify():
        for manifest in folder.glob(f"batch_*/{checkpoints.MANIFEST}"):
            pretrained.load(manifest.parent).tensors("samples")
            batches.add(manifest.parent.name)
        if folder.exists():
            with exclusive(folder, folder.glob("batch_*")):
                assert no_unfinished_file(folder)
        assert all((folder / name).is_dir() for name in batches), "a batch is lost"

    died = lives.kill_often(
        lives.sample, folder, count, kills=kills, longest=0.5, check=finished_batches_verify
    )
    found, expected = (
        pretrained.load(f.with_name("samples")).tensors("samples")["x"]
        for f in (folder, undisturbed)
    )
    assert torch.equal(found, expected)
    assert died.total() >= kills / 2
    figures("kills of sampling", kills=dict(died))


NOTEBOOK = Path("notebooks/01_first.ipynb")


@pytest.fixture
def book(tmp_path):
    """A book of one chapter, which takes four seconds."""
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: notebooks/01_first\n")
    (tmp_path / "requirements.lock").write_text("torch==2.6\n")
    cells = ["import time", *(f"time.sleep(0.3)\nprint({i})" for i in range(10))]
    (tmp_path / "notebooks").mkdir()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [new_code_cell(cell) for cell in cells]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / NOTEBOOK)
    return tmp_path


@often(2, 24)
def test_execution_survives_kills_and_leaves_no_kernel(book, kills, figures):
    source = (book / NOTEBOOK).read_bytes()
    executed = execution.executed_path(book, NOTEBOOK)

    def a_stored_copy_is_whole():
        assert (book / NOTEBOOK).read_bytes() == source
        if execution._made_path(book, NOTEBOOK).exists():
            assert nbformat.read(executed, as_version=4).cells[-1].outputs[0].text == "9\n"
        with execution.alone(book):
            assert no_unfinished_file(book)
        execution._made_path(book, NOTEBOOK).unlink(missing_ok=True)  # so that it is executed again

    died = lives.kill_often(
        lives.execute, book, NOTEBOOK, kills=kills, longest=4, check=a_stored_copy_is_whole
    )
    assert nbformat.read(executed, as_version=4).cells[-1].outputs[0].text == "9\n"
    assert died.total() >= kills / 2
    figures("kills of execution", kills=dict(died))


class Slow(http.server.SimpleHTTPRequestHandler):
    """Sends a file in pieces, 2 ms apart; of `cut`, only the first half."""

    def do_GET(self):
        raw = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        for start in range(0, len(raw) // 2 if "cut" in self.path else len(raw), 1 << 14):
            self.wfile.write(raw[start : start + (1 << 14)])
            time.sleep(0.002)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a folder with three files of 2 MB, and the archive that they make up."""
    folder = tmp_path / "server"
    folder.mkdir()
    digests = {}
    for i in range(3):
        raw = gzip.compress(torch.randint(256, (1 << 21,), dtype=torch.uint8).numpy().tobytes(), 1)
        (folder / f"{i}.gz").write_bytes(raw)
        digests[f"{i}.gz"] = hashlib.sha256(raw).hexdigest()
    handler = functools.partial(Slow, directory=str(folder))
    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http_server.handle_error = lambda *_: None  # a client that was killed
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield folder, Archive(f"http://127.0.0.1:{http_server.server_port}/", "raw", digests)
    http_server.shutdown()
    http_server.server_close()


@often(4, 40)
def test_a_download_survives_kills(tmp_path, server, kills, figures):
    folder, archive = server
    root = tmp_path / "data"

    def every_file_with_its_name_is_whole():
        for name, sha256 in archive.sha256.items():
            path = root / "raw" / name
            if path.exists():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
            if path.with_suffix("").exists():
                assert path.with_suffix("").read_bytes() == gzip.decompress(path.read_bytes())
        if kills > 4 and (root / "raw" / "2").exists():  # begin again
            for path in (root / "raw").glob("[0-9]*"):
                path.unlink()

    died = lives.kill_often(
        lives.download,
        archive,
        root,
        kills=kills,
        longest=1.0,
        check=every_file_with_its_name_is_whole,
    )
    assert no_unfinished_file(root)
    assert (root / "raw" / "2").read_bytes() == gzip.decompress((folder / "2.gz").read_bytes())
    figures("kills of a download", kills=dict(died))


def test_a_download_that_is_cut_short_or_altered_is_never_used(tmp_path, server):
    folder, archive = server
    (folder / "cut.gz").write_bytes((folder / "0.gz").read_bytes())
    for name, sha256 in (("cut.gz", archive.sha256["0.gz"]), ("1.gz", "0" * 64)):
        with pytest.raises(CorruptFileError, match="not the published file"):
            fetch(Archive(archive.address, "raw", {name: sha256}), tmp_path)
        assert not (tmp_path / "raw" / name).exists()
        assert not (tmp_path / "raw" / name).with_suffix("").exists()
        assert no_unfinished_file(tmp_path)


@pytest.mark.slow
def test_a_file_that_rotted_on_disk_is_downloaded_again(tmp_path, server):
    folder, archive = server
    fetch(archive, tmp_path)
    (tmp_path / "raw" / "1.gz").write_bytes(b"rotten")
    fetch(archive, tmp_path)
    assert (tmp_path / "raw" / "1.gz").read_bytes() == (folder / "1.gz").read_bytes()


def test_a_download_removes_what_a_killed_one_left_and_unpacks_no_tar(tmp_path, server):
    folder, archive = server
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / f"1.gz.{'a1' * 16}.partial").write_bytes(b"half of it")
    (raw / "film.partial").write_bytes(b"a stranger's")
    (folder / "all.tar.gz").write_bytes((folder / "0.gz").read_bytes())
    names = {"all.tar.gz": archive.sha256["0.gz"], "1.gz": archive.sha256["1.gz"]}
    fetch(Archive(archive.address, "raw", names), tmp_path)
    left = sorted(path.name for path in raw.iterdir() if not path.name.startswith("."))
    assert left == ["1", "1.gz", "all.tar.gz", "film.partial"]


# --- two at once ---------------------------------------------------------------------------------


@works
def test_a_second_process_on_one_folder_is_refused_and_disturbs_nothing(tmp_path, work):
    folder, alone = tmp_path / "a" / "run", tmp_path / "b" / "run"
    first = lives.begin(work, folder)
    while not (folder / checkpoints.MANIFEST).exists():
        assert first.is_alive()
        time.sleep(0.01)
    with pytest.raises(NCSNError, match="another process is writing into"):
        work(folder)
    first.join(60)
    assert first.exitcode == 0
    assert lives.finish(work, alone) == 0
    if work is lives.train:
        assert pretrained.load(folder).history == pretrained.load(alone).history
    else:
        ours, theirs = (pretrained.load(f.with_name("samples")) for f in (folder, alone))
        assert torch.equal(ours.tensors("samples")["x"], theirs.tensors("samples")["x"])


# --- disks ---------------------------------------------------------------------------------------


def _with_small_files(work, folder, report):
    """Run the work where a file may have 4 kB, as on a disk that is nearly full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    _reported(work, folder, report)


def _as_nobody(work, folder, report):
    """Run the work as a user who may not write there."""
    if os.geteuid() == 0:
        work(folder.with_name("warm"))  # imports what comes late, while it can be read
        os.setuid(65534)
    _reported(work, folder, report)


def _reported(work, folder, report):
    try:
        work(folder)
        report.put("finished")
    except Exception as error:
        report.put(f"{type(error).__name__}: {error}")


@works
def test_a_full_disk_ends_in_one_message_and_the_work_goes_on_when_there_is_room(tmp_path, work):
    folder = tmp_path / "run"
    if work is lives.train:
        assert lives.finish(work, folder, 8) == 0
        before = pretrained.load(folder).weights_sha256
    report = lives.processes.Queue()
    assert lives.finish(_with_small_files, _Again(work), folder, report) == 0
    message = report.get(timeout=10)
    assert message.startswith("UnwritableError: ")
    assert "File too large" in message
    assert "still there" in message
    if work is lives.train:
        assert pretrained.load(folder).weights_sha256 == before
        pretrained.load(folder).tensors()
    assert no_unfinished_file(folder)
    assert lives.finish(_Again(work), folder) == 0


class _Again:
    """The work with a longer plan."""

    def __init__(self, work):
        self.work = work
        self.__name__ = work.__name__

    def __call__(self, folder):
        self.work(folder, 20)


@works
def test_a_read_only_folder_ends_in_one_message(work):
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        locked = Path(place) / "locked"
        locked.mkdir(mode=0o555)
        report = lives.processes.Queue()
        assert lives.finish(_as_nobody, work, locked / "run", report) == 0
        message = report.get(timeout=10)
    assert message.startswith("UnwritableError: ")
    assert "locked/run cannot be written to" in message
    assert "Permission denied" in message


@pytest.mark.stress
def test_a_real_full_disk(tmp_path, figures):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        folder = disk / "run"
        assert lives.finish(lives.train, folder, 8) == 0
        room = os.statvfs(disk)
        (disk / "ballast").write_bytes(b"x" * (room.f_bavail * room.f_frsize - 20_000))
        report = lives.processes.Queue()
        assert lives.finish(_reported, _Again(lives.train), folder, report) == 0
        message = report.get(timeout=10)
        assert message.startswith("UnwritableError: ")
        assert "No space left on device" in message
        record = pretrained.load(folder)
        assert record.manifest["step"] == 8
        record.tensors("state")
        (disk / "ballast").unlink()
        assert lives.finish(_Again(lives.train), folder) == 0
        assert lives.finish(lives.train, tmp_path / "undisturbed", 20) == 0
        expected = pretrained.load(tmp_path / "undisturbed").history
        assert pretrained.load(folder).history == expected
        figures("full disk", message=message.replace(str(disk), "…"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_unwritable_is_an_error_of_ours_and_an_error_of_the_system():
    assert issubclass(UnwritableError, NCSNError)
    assert issubclass(UnwritableError, OSError)
