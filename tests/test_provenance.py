"""Where a result came from: commits, devices and versions, also where they cannot be known."""

import os
import subprocess
from types import SimpleNamespace

import pytest
import torch

from ncsn_core import provenance
from ncsn_core.book import provenance as book


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of its own, of one commit, that the package seems to lie in."""
    package = tmp_path / "ncsn_core"
    package.mkdir()
    (package / "schedules.py").write_text("first = 1.0\n")
    (tmp_path / "notes.md").write_text("# Notes\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    monkeypatch.setattr(book, "PACKAGE", package)
    book.commit.cache_clear()
    yield tmp_path
    book.commit.cache_clear()


def git(folder, *arguments):
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# --- commits ------------------------------------------------------------------------------------


def test_a_commit_says_whether_the_package_has_changed_since(checkout):
    head = git(checkout, "rev-parse", "--short=12", "HEAD")
    (checkout / "notes.md").write_text("# Other notes\n")
    assert provenance.commit() == head
    (checkout / "ncsn_core" / "schedules.py").write_text("first = 2.0\n")
    assert provenance.commit() == f"{head}+changes"


def test_the_commit_of_a_chapter_says_whether_anything_has_changed_since(checkout):
    head = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert book.commit() == head
    (checkout / "notes.md").write_text("# Other notes\n")
    assert book.commit() == head, "a process asks once"
    book.commit.cache_clear()
    assert book.commit() == f"{head}-dirty"


def test_a_package_inside_of_another_repository_has_a_version_and_not_its_commit(
    checkout, monkeypatch
):
    installed = checkout / "lib" / "ncsn_core" / "provenance.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.commit() == f"version {provenance.package_version('ncsn-core')}"


def outside(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "ncsn_core" / "provenance.py"))
    monkeypatch.setattr(book, "PACKAGE", tmp_path)


def without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


def stuck(tmp_path, monkeypatch):
    def run(command, *, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize("trouble", [outside, without_git, stuck])
def test_without_a_checkout_or_git_there_is_a_version_and_no_commit(tmp_path, monkeypatch, trouble):
    trouble(tmp_path, monkeypatch)
    assert provenance.commit() == f"version {provenance.package_version('ncsn-core')}"
    assert book.commit.__wrapped__() is None


def test_a_package_that_is_not_installed_has_no_version():
    assert torch.__version__.startswith(provenance.package_version("torch"))
    assert provenance.package_version("no-such-package") == "unknown"


# --- devices ------------------------------------------------------------------------------------


def test_a_gpu_is_called_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert provenance.device_name("cuda:0") == "Tesla T4"
    assert book.device() == "Tesla T4"


def test_an_apple_gpu_is_called_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert provenance.device_name("mps") == "mps"
    assert book.device() == "mps"


@pytest.mark.parametrize(("threads", "text"), [(1, "1 thread"), (2, "2 threads")])
def test_a_cpu_is_called_by_its_model_with_the_threads_used(monkeypatch, tmp_path, threads, text):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU: fast\nflags\t\t: avx2\n")
    monkeypatch.setattr(provenance, "Path", lambda name: info)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert provenance.device_name("cpu") == f"Some CPU: fast, {text}"


@pytest.mark.parametrize("info", ["", "processor\t: 0\nBogoMIPS\t: 50.00\n", None])
def test_a_cpu_without_a_model_is_called_by_its_architecture(monkeypatch, tmp_path, info):
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(provenance, "Path", lambda name: tmp_path / "cpuinfo")
    monkeypatch.setattr(provenance.platform, "processor", lambda: "")
    monkeypatch.setattr(provenance.platform, "machine", lambda: "aarch64")
    assert provenance.device_name("cpu").startswith("aarch64, ")


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert book.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert book.cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert book.cores() == 1


def test_a_process_that_has_not_loaded_torch_has_computed_on_one_thread_of_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(book, "sys", SimpleNamespace(modules={}))
    assert (book.device(), book.threads()) == ("cpu", 1)
