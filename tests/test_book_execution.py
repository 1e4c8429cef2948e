"""Executing chapters: what is executed again and when, and what is left when something fails."""

import errno
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ncsn_book import execution
from ncsn_book.execution import PROBE_TAG, BookError, Outcome, chapters, defaults, read
from ncsn_core import files, provenance
from ncsn_core.book import claims, ledger

REPOSITORY = Path(__file__).resolve().parents[1]
CHAPTER = Path("notebooks/01_first.ipynb")


def write(path, *cells):
    """Write a notebook; a string is a code cell, a cell is itself."""
    made = [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(new_notebook(cells=made, metadata={"kernelspec": kernel}), path)


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
LOADED = ["__init__.py", "schedules.py", "models", "models/mnist.bin"]


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
        known = {"ncsn": provenance.record(), "files": [f"ncsn_core/{name}" for name in LOADED]}
        report = new_output("display_data", metadata=known)
        probe = new_code_cell("probe", outputs=[report], metadata={"tags": [PROBE_TAG]})
        finished.cells.append(probe)
        return finished, ""

    monkeypatch.setattr(execution, "_run", run)
    return executed


# --- what is executed again ---------------------------------------------------------------------


def test_an_unchanged_chapter_is_executed_once(root, runs):
    lines = []
    assert execution.execute(root, CHAPTER, report=lines.append) == Outcome(CHAPTER)
    assert execution.execute(root, CHAPTER, report=lines.append) == Outcome(CHAPTER, cached=True)
    assert runs == [str(CHAPTER)]
    assert "output 1" in execution.executed_path(root, CHAPTER).read_text()
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
        (add_checkpoint, "changed: parameters"),
    ],
)
def test_changing_an_ingredient_executes_again_and_says_which(root, runs, change, reason):
    execution.execute(root, CHAPTER)
    change(root)
    lines = []
    assert not execution.execute(root, CHAPTER, report=lines.append).cached
    assert reason in lines[0]
    assert execution.execute(root, CHAPTER).cached


def test_a_claim_that_left_the_ledger_executes_again(root, runs):
    execution.execute(root, CHAPTER)
    drop_the_claim(root)
    assert execution.changed(root, CHAPTER) == "changed: claim 16"


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
    execution.execute(root, CHAPTER)
    change(root)
    assert execution.execute(root, CHAPTER).cached


def test_an_edit_during_the_execution_is_not_taken_for_what_ran(root, runs, monkeypatch):
    run = execution._run

    def edited(*arguments):
        edit_module(root)
        return run(*arguments)

    monkeypatch.setattr(execution, "_run", edited)
    execution.execute(root, CHAPTER)
    lines = []
    assert not execution.execute(root, CHAPTER, report=lines.append).cached
    assert "changed: ncsn_core/schedules.py" in lines[0]


def test_editing_a_checkpoint_that_a_parameter_names_executes_again(root, runs):
    add_checkpoint(root)
    execution.execute(root, CHAPTER)
    (root / "my_run" / "weights.bin").write_bytes(b"WEIGHTS")
    assert not execution.execute(root, CHAPTER).cached


def test_another_python_executes_again(root, runs, monkeypatch):
    execution.execute(root, CHAPTER)
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "99", "0"))
    assert not execution.execute(root, CHAPTER).cached


def test_other_parameters_execute_again(root, runs):
    execution.execute(root, CHAPTER)
    assert not execution.execute(root, CHAPTER, parameters={"seed": 1}).cached
    assert execution.execute(root, CHAPTER, parameters={"seed": 1}).cached
    assert not execution.execute(root, CHAPTER, parameters={"seed": 2}).cached


def test_outputs_bytecode_and_other_chapters_do_not_matter(root, runs):
    execution.execute(root, CHAPTER)
    notebook = nbformat.read(root / CHAPTER, as_version=4)
    notebook.cells[2].outputs = [new_output("stream", text="stored\n")]
    nbformat.write(notebook, root / CHAPTER)
    (root / "ncsn_core" / "__pycache__").mkdir()
    (root / "ncsn_core" / "__pycache__" / "schedules.cpython-311.pyc").write_bytes(b"bytecode")
    write(root / "notebooks/02_second.ipynb", "print('two')")
    assert execution.execute(root, CHAPTER).cached


def test_success_removes_the_partial_output_of_an_earlier_failure(root, runs):
    write(execution.failed_path(root, CHAPTER), "1 / 0")
    execution.execute(root, CHAPTER)
    assert not execution.failed_path(root, CHAPTER).exists()


def test_force_executes_again(root, runs):
    execution.execute(root, CHAPTER)
    assert not execution.execute(root, CHAPTER, force=True).cached


@pytest.mark.parametrize("damage", ["truncate", "remove", "key"])
def test_a_damaged_cache_entry_is_not_used(root, runs, damage):
    execution.execute(root, CHAPTER)
    executed = execution.executed_path(root, CHAPTER)
    if damage == "truncate":
        executed.write_bytes(executed.read_bytes()[:-20])
    elif damage == "remove":
        executed.unlink()
    else:
        execution._made_path(root, CHAPTER).write_text("[]")
    assert not execution.execute(root, CHAPTER).cached


def test_an_unknown_parameter_is_refused_with_the_known_ones(root, runs):
    with pytest.raises(BookError, match="no parameter sed; its parameters are: seed, check"):
        execution.execute(root, CHAPTER, parameters={"sed": 1})
    with pytest.raises(BookError, match="no cell is tagged parameters"):
        execution.execute(root, Path("notebooks/02_second.ipynb"), parameters={"seed": 1})
    assert runs == []


def test_a_file_that_is_no_notebook_is_named(root):
    (root / CHAPTER).write_text("not JSON")
    with pytest.raises(BookError, match=r"01_first\.ipynb is not a notebook"):
        execution.execute(root, CHAPTER)


# --- parameters and old notebooks ---------------------------------------------------------------


def test_parameters_are_what_their_cell_assigns(root):
    source = "import os\nsteps: int = 3\nname = 'x'  # a name\nfolder = os.getcwd()\nnothing = None"
    write(root / CHAPTER, "other = 5", parameters(source))
    assert defaults(root / CHAPTER) == {"steps": 3, "name": "x", "folder": None, "nothing": None}


def as_colab_saves_it(path, minor):
    """The notebook without ids, of version 4.`minor`, with Colab's own marks in it."""
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell.pop("id")
        cell["metadata"]["id"] = "Xy_1"
    notebook["metadata"]["colab"] = {"provenance": []}
    path.write_text(json.dumps(notebook | {"nbformat_minor": minor}))


@pytest.mark.parametrize("minor", [0, 4, 5])
def test_a_cell_without_an_id_gets_the_same_at_every_reading(root, minor):
    as_colab_saves_it(root / CHAPTER, minor)
    found = read(root / CHAPTER)
    nbformat.validate(found)
    assert read(root / CHAPTER) == found


@pytest.mark.slow
def test_a_chapter_that_colab_has_saved_settles_after_one_refresh(root):
    as_colab_saves_it(root / CHAPTER, 0)
    execution.execute(root, CHAPTER, report=print)
    execution.refresh(root, CHAPTER)
    before = (root / CHAPTER).read_bytes()
    assert not execution.refresh(root, CHAPTER)
    assert execution.execute(root, CHAPTER, report=print).cached
    assert (root / CHAPTER).read_bytes() == before


def test_cells_of_one_id_get_ids_of_their_own(root):
    notebook = json.loads((root / CHAPTER).read_text())
    for cell in notebook["cells"]:
        cell["id"] = "same"
    (root / CHAPTER).write_text(json.dumps(notebook))
    ids = [cell.id for cell in read(root / CHAPTER).cells]
    assert len(set(ids)) == len(ids) > 1
    assert ids == [cell.id for cell in read(root / CHAPTER).cells]


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


def test_a_full_disk_leaves_the_executed_copy_as_it_was(root, runs, monkeypatch):
    execution.execute(root, CHAPTER)
    before = execution.executed_path(root, CHAPTER).read_bytes()

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    edit_module(root)
    with monkeypatch.context() as patch:
        patch.setattr(execution, "write_atomically", full)
        with pytest.raises(OSError, match="No space left on device"):
            execution.execute(root, CHAPTER)
    assert execution.executed_path(root, CHAPTER).read_bytes() == before
    assert not execution.execute(root, CHAPTER).cached


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
    execution.execute(root, CHAPTER)
    assert execution.refresh(root, CHAPTER)
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
    execution.execute(root, CHAPTER)
    assert execution.refresh(root, CHAPTER)
    before = (root / CHAPTER).read_bytes()
    monkeypatch.setattr(provenance, "commit", lambda: "another")
    runs.clear()
    execution.execute(root, CHAPTER, force=True)
    assert not execution.refresh(root, CHAPTER)
    assert (root / CHAPTER).read_bytes() == before
    execution.execute(root, CHAPTER, force=True)
    assert execution.refresh(root, CHAPTER)


# --- real kernels -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What an execution sets for its kernels ends with the test."""
    for name in (*execution.KERNEL_ENVIRONMENT, provenance.NOTEBOOK):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.slow
def test_a_chapter_runs_in_its_own_folder_with_its_own_python(root):
    write(
        root / CHAPTER,
        parameters("seed = 0"),
        "import os, sys\nprint(os.path.basename(os.getcwd()), seed, sys.executable)",
        "print(os.environ['TQDM_DISABLE'])",
    )
    execution.execute(root, CHAPTER, parameters={"seed": 7})
    executed = nbformat.read(execution.executed_path(root, CHAPTER), as_version=4)
    assert executed.cells[2].outputs[0].text == f"notebooks 7 {sys.executable}\n"
    assert executed.cells[3].outputs[0].text == "1\n"
    assert len(executed.cells) == 4  # the injected parameters, and no probe
    assert executed.metadata["ncsn"]["parameters"] == {"seed": 7}
    assert executed.metadata["ncsn"]["device"] == "cpu"
    assert "papermill" not in execution.executed_path(root, CHAPTER).read_text()
    assert execution.execute(root, CHAPTER, parameters={"seed": 7}).cached
    left = sorted(path.name for path in (root / "_build/executed").rglob("*.*"))
    assert left == ["01_first.ipynb", "01_first.made.json"]


@pytest.mark.slow
def test_a_kernel_reports_the_modules_and_records_that_it_loaded(root):
    write(
        root / CHAPTER,
        "from ncsn_core import files\n"
        "package = files.Path(files.__file__).parent\n"
        "(package / 'profiles.yaml').read_text()\n"
        "len(list((package / 'models').glob('*/manifest.json')))",
        "[name for name in ('provenance', 'watch') if name in globals()]",
    )
    execution.execute(root, CHAPTER)
    executed = nbformat.read(execution.executed_path(root, CHAPTER), as_version=4)
    assert [cell.execution_count for cell in executed.cells] == [1, 2]
    assert executed.cells[1].outputs[0].data["text/plain"] == "[]"
    assert "files" not in executed.metadata["ncsn"]
    made = json.loads(execution._made_path(root, CHAPTER).read_text())
    found = {name: made[name] for name in made if "/" in name}
    names = ["__init__", "_lazy", "errors", "files", "provenance"]
    expected = {*(f"{name}.py" for name in names), "profiles.yaml", "models"}
    assert found.keys() == {f"ncsn_core/{name}" for name in expected}
    assert (
        found["ncsn_core/files.py"] == hashlib.sha256(Path(files.__file__).read_bytes()).hexdigest()
    )


@pytest.mark.slow
def test_a_failing_cell_is_named_and_its_partial_output_kept(root):
    write(root / CHAPTER, new_markdown_cell("# First"), "print('so far')", "\nx = 1\n1 / 0")
    lines = []
    second = Path("notebooks/02_second.ipynb")
    failed, done = execution.execute_all(root, [CHAPTER, second], report=lines.append)
    assert done == Outcome(second)
    message = failed.failure
    assert "cell 3 of 3, which begins with\n    x = 1" in message
    assert "ZeroDivisionError: division by zero" in message
    assert "_build/executed/failed/notebooks/01_first.ipynb" in message
    assert f"{CHAPTER}: {message}" in lines
    partial = nbformat.read(execution.failed_path(root, CHAPTER), as_version=4)
    printed, raised = [cell.outputs for cell in partial.cells if cell.get("outputs")][:2]
    assert "so far\n" in {printed[0].get("text"), raised[0].get("text")}
    assert "ZeroDivisionError" in execution.failed_path(root, CHAPTER).read_text()
    assert not execution.executed_path(root, CHAPTER).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "timeout", "reason"),
    [
        ("import time; time.sleep(60)", 2.0, "still running when the chapter's 2 s were over"),
        ("import os; os._exit(1)", None, "the kernel died"),
    ],
)
def test_a_cell_that_never_returns_is_named(root, source, timeout, reason):
    write(root / CHAPTER, "print('so far')", source, "print('never')")
    failure = execution.execute(root, CHAPTER, timeout=timeout).failure
    assert "cell 2 of 3" in failure
    assert reason in failure
    partial = nbformat.read(execution.failed_path(root, CHAPTER), as_version=4)
    assert partial.cells[0].outputs[0].text == "so far\n"


@pytest.mark.slow
def test_an_interrupt_keeps_the_old_copy_and_the_partial_output(root):
    executed = execution.executed_path(root, CHAPTER)
    write(executed, "print('the old copy')")
    before = executed.read_bytes()
    mark = "import time\nopen('reached', 'w').close()"
    write(root / CHAPTER, "print('so far')", mark, "time.sleep(60)")
    script = (
        "from pathlib import Path; from ncsn_book import execution; "
        f"execution.execute(Path({str(root)!r}), Path({str(CHAPTER)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "book" / "_ext")}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 60
    while not (root / "notebooks" / "reached").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert executed.read_bytes() == before
    assert list(executed.parent.iterdir()) == [executed]
    partial = nbformat.read(execution.failed_path(root, CHAPTER), as_version=4)
    assert partial.cells[0].outputs[0].text == "so far\n"


def test_a_kernel_that_does_not_start_is_no_fault_of_a_cell(root, monkeypatch):
    def fail(*_, **__):
        raise DeadKernelError("gone")

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    failure = execution.execute(root, CHAPTER).failure
    assert failure.startswith("the kernel did not start\n  the kernel died")


@pytest.mark.slow
def test_chapters_at_the_same_time_share_the_threads(root, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    second = Path("notebooks/02_second.ipynb")
    for notebook in (CHAPTER, second):
        write(root / notebook, "import os\nprint(os.environ['OMP_NUM_THREADS'])")
    outcomes = execution.execute_all(root, [CHAPTER, second], jobs=2)
    assert outcomes == [Outcome(CHAPTER), Outcome(second)]
    for page in (CHAPTER, second):
        executed = nbformat.read(execution.executed_path(root, page), as_version=4)
        assert executed.cells[0].outputs[0].text == "2\n"


def test_chapters_that_measure_time_come_last_and_alone(root, monkeypatch):
    for notebook in (CHAPTER, Path("notebooks/02_second.ipynb")):
        write(root / notebook, "print(1)")
    timed = nbformat.read(root / CHAPTER, as_version=4)
    timed.cells[0].metadata["tags"] = ["measures-time"]
    nbformat.write(timed, root / CHAPTER)
    began = []

    class Pool:
        def __init__(self, *_, **__):
            began.append("together")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            began.append("alone")

        def map(self, run, pages):
            return map(run, pages)

    def run(root, page, **_):
        began.append(page)
        return Outcome(page)

    monkeypatch.setattr(execution, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(execution, "execute", run)
    second = Path("notebooks/02_second.ipynb")
    third = Path("notebooks/03_third.ipynb")
    write(root / third, "print(3)")
    execution.execute_all(root, [CHAPTER, second, third], jobs=2)
    assert began == ["together", second, third, "alone", CHAPTER]


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
    assert chapters(root) == [Path("notebooks/02_second.ipynb"), CHAPTER]
    assert chapters(root, ["01_first"]) == [CHAPTER]
    assert chapters(root, ["notebooks/01_first.ipynb", "01_first"]) == [CHAPTER]
    with pytest.raises(BookError, match=r"no chapter is called '03'.* 02_second, 01_first"):
        chapters(root, ["03"])


def test_outside_of_a_clone_there_are_no_chapters(tmp_path):
    with pytest.raises(BookError, match="in the root of a clone"):
        chapters(tmp_path)
