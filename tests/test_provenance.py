"""Where a result came from: commits, devices and versions, also where they cannot be known."""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest
import torch

from ncsn_core import pretrained, provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of its own, of one commit, that the package seems to lie in."""
    package = tmp_path / "ncsn_core"
    record = package / "models" / "mnist" / "manifest.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    (package / "schedules.py").write_text("first = 1.0\n")
    (package / "configs.yaml").write_text("steps: 1\n")
    (tmp_path / "notes.md").write_text("# Notes\n")
    write_notebook(tmp_path / "chapter.ipynb", "1 + 1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    monkeypatch.setattr(provenance, "_records", set())
    monkeypatch.delenv(provenance.NOTEBOOK, raising=False)
    return tmp_path


def write_notebook(path, source, **output):
    """A notebook of one cell; what else it holds are outputs."""
    cell = {"cell_type": "code", "source": [source], "outputs": [output]}
    path.write_text(json.dumps({"cells": [cell], "metadata": output}))


def git(folder, *arguments):
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# --- commits ------------------------------------------------------------------------------------


def head_of(checkout):
    return git(checkout, "rev-parse", "--short=12", "HEAD")


@pytest.mark.parametrize("name", ["schedules.py", "configs.yaml", "new.py"])
def test_a_commit_says_whether_code_or_settings_have_changed_since(checkout, name):
    (checkout / "notes.md").write_text("# Other notes\n")
    (checkout / "ncsn_core" / "models" / "mnist" / "manifest.json").write_text("another")
    assert provenance.commit() == head_of(checkout)
    (checkout / "ncsn_core" / name).write_text("changed\n")
    assert provenance.commit() == f"{head_of(checkout)}+changes"


def test_a_changed_record_counts_when_it_was_opened(checkout):
    record = checkout / "ncsn_core" / "models" / "mnist" / "manifest.json"
    provenance.opened(record)
    assert provenance.commit() == head_of(checkout)
    record.write_text("another")
    assert provenance.commit() == f"{head_of(checkout)}+changes"


def test_a_record_elsewhere_is_no_change(checkout, tmp_path_factory):
    record = tmp_path_factory.mktemp("runs") / "manifest.json"
    record.write_text("{}")
    provenance.opened(record)
    assert provenance.commit() == head_of(checkout)


def test_reading_a_record_opens_it():
    pretrained.load("mnist")
    assert (pretrained.MODELS / "mnist" / "manifest.json").resolve() in provenance._records


def test_the_cells_of_the_executed_notebook_count_and_its_outputs_do_not(checkout, monkeypatch):
    chapter = checkout / "chapter.ipynb"
    monkeypatch.setenv(provenance.NOTEBOOK, str(chapter))
    write_notebook(chapter, "1 + 1", text="2")
    assert provenance.commit() == head_of(checkout)
    write_notebook(chapter, "1 + 2", text="3")
    assert provenance.commit() == f"{head_of(checkout)}+changes"


def test_a_notebook_that_was_never_committed_is_a_change(checkout, monkeypatch):
    write_notebook(checkout / "new.ipynb", "1 + 1")
    monkeypatch.setenv(provenance.NOTEBOOK, str(checkout / "new.ipynb"))
    assert provenance.commit() == f"{head_of(checkout)}+changes"


def test_a_notebook_outside_of_the_checkout_is_no_change(checkout, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "mine.ipynb"
    write_notebook(elsewhere, "1 + 1")
    monkeypatch.setenv(provenance.NOTEBOOK, str(elsewhere))
    assert provenance.commit() == head_of(checkout)


def test_a_package_inside_of_another_repository_has_a_version_and_not_its_commit(
    checkout, monkeypatch
):
    installed = checkout / "lib" / "ncsn_core"
    installed.mkdir(parents=True)
    monkeypatch.setattr(provenance, "PACKAGE", installed)
    assert provenance.commit() == f"version {provenance.package_version('ncsn-core')}"


def outside(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "ncsn_core")


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


def test_a_package_that_is_not_installed_has_no_version():
    assert torch.__version__.startswith(provenance.package_version("torch"))
    assert provenance.package_version("no-such-package") == "unknown"


# --- devices ------------------------------------------------------------------------------------


def test_a_gpu_is_called_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert provenance.device_name("cuda:0") == "Tesla T4"
    assert provenance.record()["device"] == "Tesla T4"


def test_an_apple_gpu_is_called_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert provenance.device_name("mps") == "mps"
    assert provenance.record()["device"] == "mps"


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
    assert provenance.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert provenance.cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert provenance.cores() == 1


def test_a_process_that_has_not_loaded_torch_has_computed_on_one_thread_of_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(provenance, "sys", SimpleNamespace(modules={}))
    found = provenance.record()
    assert (found["device"], found["threads"]) == ("cpu", 1)
