"""Published notebooks: each installs the book's package by itself, on Colab or elsewhere.

`repository.url` in `_config.yml` is the one place that names the public repository.  While it is
empty the site has no button that leads there, and its notebooks are those of the repository.
"""

import re
from typing import Any
from urllib.parse import urlparse

import nbformat
from nbformat import NotebookNode

SETUP_ID = "ncsn-setup"
BRANCH = "gh-pages"
"""The branch that holds the rendered site, and in `_sources` the published notebooks."""

SETUP = """\
# Installs the book's package where it is missing, as on Colab. The torch that is there stays.
import importlib.util
import subprocess
import sys
from importlib import metadata

import torch

if importlib.util.find_spec("ncsn_core") is None:
    kept = [f"{{name}}=={{metadata.version(name)}}" for name in ("torch", "torchvision")]
    package = "ncsn-core @ {wheel}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package, *kept], check=True)
    importlib.invalidate_caches()
print("device:", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")"""

DEVICE = re.compile(r'^device = "cpu"', re.MULTILINE)
PICK = 'device = "cuda" if torch.cuda.is_available() else "cpu"'


def address(config: dict[str, Any]) -> str:
    """The public repository's address in the book's configuration, without a slash at its end."""
    return str(config.get("repository", {}).get("url") or "").rstrip("/")


def wheel_address(repository: str, version: str) -> str:
    """Where the site of a GitHub repository keeps the package's wheel."""
    owner, name = urlparse(repository).path.strip("/").split("/")
    return f"https://{owner.lower()}.github.io/{name}/ncsn_core-{version}-py3-none-any.whl"


def configure(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with the buttons that lead to the repository, if there is one."""
    if not address(config):
        return config
    return {
        **config,
        "repository": {**config["repository"], "branch": BRANCH, "path_to_book": "_sources"},
        "launch_buttons": {
            **config.get("launch_buttons", {}),
            "colab_url": "https://colab.research.google.com",
        },
        "html": {
            **config.get("html", {}),
            "use_repository_button": True,
            "use_issues_button": True,
        },
    }


def stamp(notebook: NotebookNode, wheel: str) -> NotebookNode:
    """Return the notebook with a first cell that installs the package, computing on a GPU if any.

    The page does not show that cell, which concerns those alone who open the notebook elsewhere.

    Args:
        notebook: a chapter.
        wheel: the address of the package's wheel.
    """
    stamped: NotebookNode = nbformat.from_dict(notebook)
    setup = nbformat.v4.new_code_cell(
        SETUP.format(wheel=wheel), metadata={"tags": ["remove-cell"]}, id=SETUP_ID
    )
    for cell in stamped.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = DEVICE.sub(PICK, cell.source)
    stamped.cells.insert(0, setup)
    return stamped
