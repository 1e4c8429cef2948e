"""Published notebooks run where there is no repository: one file, what Colab has, and the wheel.

Needs a package registry and some minutes; `make test-colab` runs it.
"""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from ncsn_book import colab, scorecard
from ncsn_book.execution import chapters, read
from ncsn_core.book.ledger import load_ledger

pytestmark = pytest.mark.colab

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
# Of what Colab has installed, what the chapters use. (Colab has hundreds of packages more.)
PREINSTALLED = ["torch", "torchvision", "numpy", "scipy", "matplotlib", "pillow", "pyyaml", "tqdm"]
PREINSTALLED += ["click", "ipykernel", "ipywidgets", "pip"]
EVERY_PUSH = {"04_denoising_score_matching", "11_annealed_langevin", "train_ncsn"}
NOTEBOOKS = [
    path
    for path in chapters(ROOT)
    if path.stem in EVERY_PUSH or os.environ.get("NCSN_COLAB") == "all"
]


def verdicts(path):
    """What an executed notebook found of each claim."""
    table = scorecard.of({path: read(path)}, load_ledger())
    return {(row.claim.id, row.part): row.status for row in table if row.verdict is not None}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The address of the package's wheel on a local server."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True, cwd=folder
    )
    (built,) = folder.glob("*.whl")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{built.name}"
    server.shutdown()
    server.server_close()


def installed(python):
    """Name and version of every package of an environment."""
    listed = subprocess.run(
        [UV, "pip", "list", "--format", "json", "--python", python],
        check=True,
        capture_output=True,
        text=True,
    )
    return {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}


@pytest.fixture(scope="session")
def machine(tmp_path_factory):
    """The Python of a fresh environment with what Colab has, at the versions of the lock."""
    folder = tmp_path_factory.mktemp("machine") / "env"
    python = folder / "bin" / "python"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    lock = folder / "constraints.txt"
    exported = [UV, "pip", "freeze", "--exclude-editable", "--python", sys.executable]
    lock.write_text(subprocess.run(exported, check=True, capture_output=True, text=True).stdout)
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--python", python, "-c", lock, *PREINSTALLED],
        check=True,
    )
    return python


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_published_notebook_runs_without_the_repository(path, wheel, machine, tmp_path):
    before = installed(machine)
    original = read(ROOT / path)
    notebook = colab.stamp(original, wheel)
    nbformat.write(notebook, tmp_path / path.name)

    class Machine(KernelManager):
        def format_kernel_cmd(self, extra_arguments=None):
            return [str(machine), "-m", "ipykernel_launcher", "-f", self.connection_file]

    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    client = NotebookClient(
        nbformat.read(tmp_path / path.name, as_version=4),
        timeout=600,
        kernel_manager_class=Machine,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    executed = client.execute(env={**kept, "TQDM_DISABLE": "1"})
    nbformat.write(executed, tmp_path / "executed.ipynb")

    after = installed(machine)
    assert "ncsn-core" in after
    assert {name: after[name] for name in before} == before  # torch and the others were not touched
    expected, found = map(verdicts, (ROOT / path, tmp_path / "executed.ipynb"))
    assert found == expected
