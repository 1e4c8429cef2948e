"""Executing chapters: what is executed again and when, and what is left when something fails."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ncsn_core import files, provenance
from ncsn_core.book import cache, claims, ledger, runner, tree
from ncsn_core.book.notebook import PROBE_TAG, default_parameters, read

CHAPTER = Path("notebooks/01_first.ipynb")


def write(path, *cells):
    """Write a notebook; a string is a code cell, a cell is itself."""
    made = [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=made), path)


def parameters(source):
    return new_code_cell(source, metadata={"tags": ["parameters"]})


@pytest.fixture
def root(tmp_path):
    """A book of two chapters."""
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: notebooks/01_first\nchapters: [{file: notebooks/02_second}]\n"
    )
    (tmp_path / "requirements.lock").write_text("torch==2.6\n")
    checkpoint = parameters("seed = 0\ncheckpoint = '../my_run'")
    write(tmp_path / CHAPTER, new_markdown_cell("# First"), checkpoint, "print(seed)")
    write(tmp_path / "notebooks/02_second.ipynb", "print(2)")
    return tmp_path


LEDGER = """
- {id: 16, title: a rate, statement: it falls, paper: §1, setting: toy, chapter: 01_first,
   kind: paper, metric: the slope, accept: {min: -1.1, max: -0.9}, over: a run,
   note: measured twice}
- {id: 17, title: a cost, statement: it is small, paper: §2, setting: toy, chapter: 02_second,
   kind: paper, metric: the time, accept: {max: 5}, over: a run}
"""
LOADED = ["__init__.py", "schedules.py", "__pycache__/schedules.pyc", "models", "models/mnist.bin"]


@pytest.fixture
def runs(root, monkeypatch):
    """Give the book a package and ledger to change, and a kernel that only counts.

    It reports that it has loaded `LOADED`, and checks claim 16. Returns the list of notebooks
    executed.
    """
    package = root / "ncsn_core"
    for name in ("__init__.py", "schedules.py", "site.py", "models/mnist.bin", "models/more.bin"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("first")
    (root / "claims.yml").write_text(LEDGER)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    monkeypatch.setattr(ledger, "find_ledger", lambda: root / "claims.yml")
    executed = []

    def run(root, notebook, source, parameters, timeout):
        executed.append(str(notebook))
        finished = nbformat.from_dict(source)
        for cell in finished.cells:
            if cell.cell_type == "code":
                cell.outputs = [new_output("stream", text=f"output {len(executed)}\n")]
        check = {"claim": 16, "part": "", "value": -1.0, "spread": None}
        line = {"text/plain": str(claims.from_metadata(check, ledger.load_ledger()))}
        verdict = new_output("display_data", data=line, metadata={"ncsn": check})
        finished.cells[-1].outputs.append(verdict)
        loaded = [f"ncsn_core/{name}" for name in LOADED]
        known = {"ncsn": provenance.record(), "files": loaded}
        report = new_output("display_data", metadata=known)
        probe = new_code_cell("probe", outputs=[report], metadata={"tags": [PROBE_TAG]})
        finished.cells.append(probe)
        return finished

    monkeypatch.setattr(runner, "_run", run)
    return executed


# --- what is executed again ---------------------------------------------------------------------


def test_an_unchanged_chapter_is_executed_once(root, runs):
    lines = []
    first = runner.execute(root, CHAPTER, report=lines.append)
    second = runner.execute(root, CHAPTER, report=lines.append)
    assert (first.cached, second.cached) == (False, True)
    assert runs == [str(CHAPTER)]
    assert "output 1" in second.executed.read_text()
    assert lines[0] == "notebooks/01_first.ipynb: executing (no executed copy yet)"
    assert "unchanged" in lines[2]


def edit_markdown(root):
    write(root / CHAPTER, new_markdown_cell("# First!"), parameters("seed = 0"), "print(seed)")


def edit_caption(root):
    notebook = nbformat.read(root / CHAPTER, as_version=4)
    notebook.cells[2].metadata["mystnb"] = {"figure": {"caption": "A caption."}}
    nbformat.write(notebook, root / CHAPTER)


def edit_module(root):
    (root / "ncsn_core" / "schedules.py").write_text("second")


def rename_module(root):
    (root / "ncsn_core" / "schedules.py").rename(root / "ncsn_core" / "noise.py")


def edit_record(root):
    (root / "ncsn_core" / "models" / "mnist.bin").write_text("second")


def add_record(root):
    (root / "ncsn_core" / "models" / "new.bin").write_text("first")


def edit_lock(root):
    (root / "requirements.lock").write_text("torch==2.7\n")


def edit_ledger(root, right, wrong):
    assert LEDGER.count(right) == 1
    (root / "claims.yml").write_text(LEDGER.replace(right, wrong))


def narrow_the_band(root):
    edit_ledger(root, "max: -0.9", "max: -0.95")


def rename_the_metric(root):
    edit_ledger(root, "the slope", "the exponent")


def drop_the_claim(root):
    edit_ledger(root, "id: 16", "id: 18")


def add_checkpoint(root):
    (root / "my_run").mkdir()
    (root / "my_run" / "weights.bin").write_bytes(b"weights")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit_markdown, "changed: notebook"),
        (edit_caption, "changed: notebook"),
        (edit_module, "changed: ncsn_core/schedules.py"),
        (rename_module, "changed: ncsn_core/schedules.py"),
        (edit_record, "changed: ncsn_core/models/mnist.bin"),
        (add_record, "changed: ncsn_core/models)"),
        (edit_lock, "changed: requirements.lock"),
        (narrow_the_band, "changed: claim 16"),
        (rename_the_metric, "changed: claim 16"),
        (add_checkpoint, "changed: checkpoints"),
    ],
)
def test_changing_an_ingredient_executes_again_and_says_which(root, runs, change, reason):
    runner.execute(root, CHAPTER)
    change(root)
    lines = []
    assert not runner.execute(root, CHAPTER, report=lines.append).cached
    assert reason in lines[0]
    assert runner.execute(root, CHAPTER).cached


def test_a_claim_that_left_the_ledger_executes_again(root, runs):
    runner.execute(root, CHAPTER)
    drop_the_claim(root)
    key = cache.key(root, CHAPTER, read(root / CHAPTER), {})
    assert cache.find(root, CHAPTER, key) == "changed: claim 16"


def edit_a_page_builder(root):
    (root / "ncsn_core" / "site.py").write_text("second")


def add_a_module(root):
    (root / "ncsn_core" / "new.py").write_text("first")


def edit_another_record(root):
    (root / "ncsn_core" / "models" / "more.bin").write_text("second")


def edit_the_note_of_a_claim(root):
    edit_ledger(root, "measured twice", "measured three times")


def edit_the_statement_of_a_claim(root):
    edit_ledger(root, "it falls", "it falls quickly")


def edit_another_claim(root):
    edit_ledger(root, "max: 5", "max: 4")


@pytest.mark.parametrize(
    "change",
    [
        edit_a_page_builder,
        add_a_module,
        edit_another_record,
        edit_the_note_of_a_claim,
        edit_the_statement_of_a_claim,
        edit_another_claim,
    ],
)
def test_what_the_kernel_did_not_load_executes_nothing(root, runs, change):
    runner.execute(root, CHAPTER)
    change(root)
    assert runner.execute(root, CHAPTER).cached


def test_an_edit_during_the_execution_is_not_taken_for_what_ran(root, runs, monkeypatch):
    run = runner._run

    def edited(*arguments):
        edit_module(root)
        return run(*arguments)

    monkeypatch.setattr(runner, "_run", edited)
    runner.execute(root, CHAPTER)
    lines = []
    assert not runner.execute(root, CHAPTER, report=lines.append).cached
    assert "changed: ncsn_core/schedules.py" in lines[0]


def test_editing_a_checkpoint_that_a_parameter_names_executes_again(root, runs):
    add_checkpoint(root)
    runner.execute(root, CHAPTER)
    (root / "my_run" / "weights.bin").write_bytes(b"WEIGHTS")
    assert not runner.execute(root, CHAPTER).cached


def test_another_python_executes_again(root, runs, monkeypatch):
    runner.execute(root, CHAPTER)
    newer = SimpleNamespace(version_info=SimpleNamespace(major=3, minor=99))
    monkeypatch.setattr(cache, "sys", newer)
    assert not runner.execute(root, CHAPTER).cached


def test_other_parameters_execute_again(root, runs):
    runner.execute(root, CHAPTER)
    assert not runner.execute(root, CHAPTER, parameters={"seed": 1}).cached
    assert runner.execute(root, CHAPTER, parameters={"seed": 1}).cached
    assert not runner.execute(root, CHAPTER, parameters={"seed": 2}).cached


def test_outputs_bytecode_and_other_chapters_do_not_matter(root, runs):
    runner.execute(root, CHAPTER)
    notebook = nbformat.read(root / CHAPTER, as_version=4)
    notebook.cells[2].outputs = [new_output("stream", text="stored\n")]
    nbformat.write(notebook, root / CHAPTER)
    (root / "ncsn_core" / "__pycache__").mkdir()
    (root / "ncsn_core" / "__pycache__" / "schedules.cpython-311.pyc").write_bytes(b"bytecode")
    write(root / "notebooks/02_second.ipynb", "print('two')")
    assert runner.execute(root, CHAPTER).cached


def test_success_removes_the_partial_output_of_an_earlier_failure(root, runs):
    write(cache.failed_path(root, CHAPTER), "1 / 0")
    runner.execute(root, CHAPTER)
    assert not cache.failed_path(root, CHAPTER).exists()


def test_force_executes_again(root, runs):
    runner.execute(root, CHAPTER)
    assert not runner.execute(root, CHAPTER, force=True).cached


@pytest.mark.parametrize("damage", ["truncate", "remove", "key"])
def test_a_damaged_cache_entry_is_not_used(root, runs, damage):
    executed = runner.execute(root, CHAPTER).executed
    if damage == "truncate":
        executed.write_bytes(executed.read_bytes()[:-20])
    elif damage == "remove":
        executed.unlink()
    else:
        cache.key_path(root, CHAPTER).write_text("[]")
    assert not runner.execute(root, CHAPTER).cached


def test_an_unknown_parameter_is_refused_with_the_known_ones(root, runs):
    with pytest.raises(tree.BookError, match="no parameter sed; its parameters are: seed, check"):
        runner.execute(root, CHAPTER, parameters={"sed": 1})
    with pytest.raises(tree.BookError, match="no cell is tagged parameters"):
        runner.execute(root, Path("notebooks/02_second.ipynb"), parameters={"seed": 1})
    assert runs == []


def test_a_file_that_is_no_notebook_is_named(root):
    (root / CHAPTER).write_text("not JSON")
    with pytest.raises(tree.BookError, match=r"01_first\.ipynb is not a notebook"):
        runner.execute(root, CHAPTER)


# --- parameters and old notebooks ---------------------------------------------------------------


def test_parameters_are_what_their_cell_assigns():
    source = (
        "import os\nsteps: int = 3\nlater: float\nfirst = second = 'x'\n"
        "folder = os.getcwd()\npair[0] = 1\nsteps += 1"
    )
    notebook = new_notebook(cells=[new_code_cell("other = 5"), parameters(source)])
    expected = {"steps": 3, "first": "x", "second": "x", "folder": None}
    assert default_parameters(notebook) == expected


def test_a_parameters_cell_that_is_not_python_has_no_parameters(root, runs):
    write(root / CHAPTER, parameters("seed = = 0"))
    with pytest.raises(tree.BookError, match="no parameter seed; its parameters are: none"):
        runner.execute(root, CHAPTER, parameters={"seed": 1})
    assert runs == []


def test_a_notebook_of_an_older_format_gets_ids_for_its_cells(root):
    old = json.loads((root / CHAPTER).read_text()) | {"nbformat_minor": 4}
    for cell in old["cells"]:
        del cell["id"]
    (root / CHAPTER).write_text(json.dumps(old))
    notebook = read(root / CHAPTER)
    nbformat.validate(notebook)
    assert notebook.nbformat_minor >= 5
    assert len({cell.id for cell in notebook.cells}) == 3


# --- what is left when writing fails ------------------------------------------------------------


def test_a_full_disk_leaves_the_cached_copy_as_it_was(root, runs, monkeypatch):
    before = runner.execute(root, CHAPTER).executed.read_bytes()

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    edit_module(root)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_atomically", full)
        with pytest.raises(runner.ChapterError, match="No space left on device"):
            runner.execute(root, CHAPTER)
    assert cache.executed_path(root, CHAPTER).read_bytes() == before
    assert not runner.execute(root, CHAPTER).cached


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "file"
    files.write_atomically(target, b"old")

    def interrupt(self, other):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


# --- storing outputs back -----------------------------------------------------------------------


def test_refresh_stores_outputs_without_traces_of_the_execution(root, runs):
    outcome = runner.execute(root, CHAPTER)
    assert runner.refresh(root, outcome)
    stored = nbformat.read(root / CHAPTER, as_version=4)
    nbformat.validate(stored)
    assert [cell.cell_type for cell in stored.cells] == ["markdown", "code", "code"]
    assert stored.cells[2].outputs[0].text == "output 1\n"
    assert "papermill" not in stored.metadata
    assert stored.metadata["kernelspec"]["name"] == "python3"
    assert stored.metadata["language_info"] == {"name": "python"}
    record = stored.metadata["ncsn"]
    assert record["parameters"] == {"seed": 0, "checkpoint": "../my_run"}
    assert {"commit", "device", "threads", "time", "seconds"} <= record.keys()


def test_refresh_touches_a_notebook_only_when_its_content_changed(root, runs, monkeypatch):
    runner.refresh(root, runner.execute(root, CHAPTER))
    before = (root / CHAPTER).read_bytes()
    monkeypatch.setattr(runner.provenance, "commit", lambda: "another")
    runs.clear()
    assert not runner.refresh(root, runner.execute(root, CHAPTER, force=True))
    assert (root / CHAPTER).read_bytes() == before
    assert runner.refresh(root, runner.execute(root, CHAPTER, force=True))


# --- real kernels -------------------------------------------------------------------------------


@pytest.fixture
def real(root, monkeypatch):
    """Real kernels, beside a kernelspec python3 in the user's own folders that does not work."""
    foreign = root / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/no/such/python"], "display_name": "foreign", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(root / "jupyter"))
    return root


@pytest.mark.slow
def test_a_chapter_runs_in_its_own_folder_with_its_own_python(real):
    write(
        real / CHAPTER,
        parameters("seed = 0"),
        "import os, sys\nprint(os.path.basename(os.getcwd()), seed, sys.executable)",
        "print(os.environ['TQDM_DISABLE'])",
    )
    outcome = runner.execute(real, CHAPTER, parameters={"seed": 7})
    executed = nbformat.read(outcome.executed, as_version=4)
    assert executed.cells[2].outputs[0].text == f"notebooks 7 {sys.executable}\n"
    assert executed.cells[3].outputs[0].text == "1\n"
    assert len(executed.cells) == 4  # the injected parameters, and no probe
    assert executed.metadata["ncsn"]["parameters"] == {"seed": 7}
    assert executed.metadata["ncsn"]["device"] == "cpu"
    assert "papermill" not in outcome.executed.read_text()
    assert "TQDM_DISABLE" not in os.environ
    assert runner.execute(real, CHAPTER, parameters={"seed": 7}).cached
    left = sorted(path.name for path in outcome.executed.parent.iterdir())
    assert left == ["01_first.ipynb", "01_first.key.json"]


@pytest.mark.slow
def test_a_kernel_reports_the_modules_and_records_that_it_loaded(real):
    write(
        real / CHAPTER,
        "from ncsn_core import files\n"
        "package = files.Path(files.__file__).parent\n"
        "(package / 'profiles.yaml').read_text()\n"
        "len(list((package / 'models').glob('*/manifest.json')))",
        "[name for name in ('provenance', 'watch') if name in globals()]",
    )
    outcome = runner.execute(real, CHAPTER)
    executed = nbformat.read(outcome.executed, as_version=4)
    assert [cell.execution_count for cell in executed.cells] == [1, 2]
    assert executed.cells[1].outputs[0].data["text/plain"] == "[]"
    assert "files" not in executed.metadata["ncsn"]
    found = json.loads(cache.key_path(real, CHAPTER).read_text())["files"]
    names = ["__init__", "_lazy", "errors", "files", "provenance"]
    expected = {*(f"{name}.py" for name in names), "profiles.yaml", "models"}
    assert found.keys() == {f"ncsn_core/{name}" for name in expected}
    assert (
        found["ncsn_core/files.py"] == hashlib.sha256(Path(files.__file__).read_bytes()).hexdigest()
    )


@pytest.mark.slow
def test_a_failing_cell_is_named_and_its_partial_output_kept(real):
    write(real / CHAPTER, new_markdown_cell("# First"), "print('so far')", "\nx = 1\n1 / 0")
    lines = []
    second = Path("notebooks/02_second.ipynb")
    done, (failure,) = runner.execute_all(real, [CHAPTER, second], report=lines.append)
    assert [outcome.notebook for outcome in done] == [second]
    message = str(failure)
    assert "notebooks/01_first.ipynb: cell 3 of 3 failed" in message
    assert "x = 1" in message
    assert "ZeroDivisionError: division by zero" in message
    assert "_build/executed/failed/notebooks/01_first.ipynb" in message
    assert message in lines
    partial = nbformat.read(real / failure.partial, as_version=4)
    assert partial.cells[1].outputs[0].text == "so far\n"
    assert partial.cells[2].outputs[0].ename == "ZeroDivisionError"
    assert not cache.executed_path(real, CHAPTER).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "timeout", "reason"),
    [
        ("import time; time.sleep(60)", 2.0, "still running when the chapter's 2 s were over"),
        ("import os; os._exit(1)", None, "the kernel died"),
    ],
)
def test_a_cell_that_never_returns_is_named(real, source, timeout, reason):
    write(real / CHAPTER, "print('so far')", source, "print('never')")
    with pytest.raises(runner.ChapterError, match="cell 2 of 3 failed") as failure:
        runner.execute(real, CHAPTER, timeout=timeout)
    assert reason in str(failure.value)
    partial = nbformat.read(real / failure.value.partial, as_version=4)
    assert partial.cells[0].outputs[0].text == "so far\n"


@pytest.mark.slow
def test_a_flood_of_output_is_refused_and_its_cell_named(real):
    write(real / CHAPTER, "print('small')", "for _ in range(20): print('x' * 10**6)")
    with pytest.raises(runner.ChapterError, match="take 20 MB, of at most 16; those of cell 2"):
        runner.execute(real, CHAPTER)
    assert not cache.executed_path(real, CHAPTER).exists()


@pytest.mark.slow
def test_an_interrupt_keeps_the_old_copy_and_the_partial_output(real):
    executed = cache.executed_path(real, CHAPTER)
    write(executed, "print('the old copy')")
    before = executed.read_bytes()
    mark = "import time\nopen('reached', 'w').close()"
    write(real / CHAPTER, "print('so far')", mark, "time.sleep(60)")
    script = (
        "from pathlib import Path; from ncsn_core.book import runner; "
        f"runner.execute(Path({str(real)!r}), Path({str(CHAPTER)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (real / "notebooks" / "reached").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert executed.read_bytes() == before
    assert list(executed.parent.iterdir()) == [executed]
    partial = nbformat.read(cache.failed_path(real, CHAPTER), as_version=4)
    assert partial.cells[0].outputs[0].text == "so far\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "could not be executed: .*Too many open"),
        (DeadKernelError("gone"), r"01_first\.ipynb: the kernel died"),
    ],
)
def test_a_kernel_that_does_not_start_is_no_fault_of_a_cell(root, monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    with pytest.raises(runner.ChapterError, match=message) as failure:
        runner.execute(root, CHAPTER)
    assert "cell" not in str(failure.value)
    assert failure.value.partial == Path("_build/executed/failed") / CHAPTER
    assert list(cache.executed_path(root, CHAPTER).parent.iterdir()) == []


def test_a_disk_too_full_for_the_partial_output_still_reports_what_failed(root, monkeypatch):
    def fail(*_, **__):
        raise DeadKernelError("gone")

    def full(path, content):
        if "failed" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        files.write_atomically(path, content)

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    monkeypatch.setattr(runner, "write_atomically", full)
    with pytest.raises(runner.ChapterError, match="the kernel died") as failure:
        runner.execute(root, CHAPTER)
    assert failure.value.partial is None
    assert "outputs up to there" not in str(failure.value)


@pytest.mark.slow
def test_chapters_at_the_same_time_share_the_threads(real, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    second = Path("notebooks/02_second.ipynb")
    for notebook in (CHAPTER, second):
        write(real / notebook, "import os\nprint(os.environ['OMP_NUM_THREADS'])")
    lines = []
    done, failed = runner.execute_all(real, [CHAPTER, second], jobs=2, report=lines.append)
    assert lines == ["2 chapters at a time, each with 2 of 4 threads"]
    assert failed == []
    for outcome in done:
        executed = nbformat.read(outcome.executed, as_version=4)
        assert executed.cells[0].outputs[0].text == "2\n"


def test_chapters_that_measure_time_come_last_and_alone(root, monkeypatch):
    for notebook in (CHAPTER, Path("notebooks/02_second.ipynb")):
        write(root / notebook, "print(1)")
    timed = nbformat.read(root / CHAPTER, as_version=4)
    timed.cells[0].metadata["tags"] = ["measures-time"]
    nbformat.write(timed, root / CHAPTER)
    began = []

    def together(root, notebooks, force, timeout, jobs, report):
        began.append(notebooks)
        return []

    monkeypatch.setattr(runner, "_attempt_together", together)
    monkeypatch.setattr(runner, "_attempt", lambda root, one, *_: began.append(one))
    runner.execute_all(root, [CHAPTER, Path("notebooks/02_second.ipynb")], jobs=2)
    assert began == [[Path("notebooks/02_second.ipynb")], CHAPTER]


def test_at_least_one_chapter_at_a_time(root):
    with pytest.raises(tree.BookError, match="at least 1, not 0"):
        runner.execute_all(root, [CHAPTER], jobs=0)


# --- the table of contents ----------------------------------------------------------------------


def test_chapters_are_the_notebooks_of_the_table_of_contents_without_records(root):
    (root / "_toc.yml").write_text(
        "format: jb-book\n"
        "root: book/intro\n"
        "chapters:\n"
        "  - file: notebooks/02_second\n"
        "  - file: notebooks/01_first\n"
        "  - file: notebooks/training/runs/2031\n"
    )
    (root / "book").mkdir()
    (root / "book" / "intro.md").write_text("# Intro")
    write(root / "notebooks/training/runs/2031.ipynb", "print(1)")
    assert tree.chapters(root) == [Path("notebooks/02_second.ipynb"), CHAPTER]
    assert len(tree.pages(root)) == 4
    assert tree.select(root, []) == tree.chapters(root)
    assert tree.select(root, ["01_first"]) == [CHAPTER]
    assert tree.select(root, ["notebooks/01_first.ipynb", "01_first"]) == [CHAPTER]
    with pytest.raises(tree.BookError, match=r"no chapter is called '03'.* 02_second, 01_first"):
        tree.select(root, ["03"])


def test_a_missing_page_and_a_malformed_table_of_contents_are_named(root):
    (root / "notebooks/02_second.ipynb").unlink()
    with pytest.raises(tree.BookError, match=r"neither notebooks/02_second\.ipynb nor"):
        tree.pages(root)
    (root / "_toc.yml").write_text("chapters: [1]\n")
    with pytest.raises(tree.BookError, match=r"_toc\.yml cannot be read"):
        tree.pages(root)


def test_the_root_is_found_from_any_folder_inside(root, tmp_path_factory):
    assert tree.find_root(root / "notebooks") == root
    with pytest.raises(tree.BookError, match="inside a clone"):
        tree.find_root(tmp_path_factory.mktemp("elsewhere"))
