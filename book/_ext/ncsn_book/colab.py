"""Published notebooks: each installs the book's package by itself, on Colab or elsewhere.

`repository.url` in `_config.yml` is the one place that names the public repository.  While it is
empty the site has no button that leads there, and its notebooks are those of the repository.
"""

import re
from importlib import metadata
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.config import Config

from ncsn_book.execution import BookError, read, to_bytes
from ncsn_book.pages import shown

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


ADDRESS = re.compile(
    r"(?:(?:git\+)?(?:https?|ssh|git)://)?(?:[^@/\s]+@)?(?:www\.)?github\.com(?::\d+/|[:/])/*"
    r"(?P<owner>[A-Za-z0-9-]+)/(?P<name>[\w.-]+?)(?:\.git)?/*",
    re.IGNORECASE,
)


def repository_address(url: str) -> str:
    """The web address of a GitHub repository, from any that browsers or git know it by.

    Raises:
        BookError: when it is none.
    """
    match = ADDRESS.fullmatch(url.strip())
    if match is None:
        raise BookError(
            f"repository.url in _config.yml must be the address of a GitHub repository, such as "
            f"https://github.com/OWNER/NAME, or empty; got {url!r}"
        )
    return f"https://github.com/{match['owner']}/{match['name']}"


def site_address(repository: str) -> str:
    """Where a GitHub repository shows its site, and the package's wheel beside it.

    Raises:
        BookError: when it is the address of none.
    """
    owner, name = repository_address(repository).split("/")[-2:]
    site = f"https://{owner.lower()}.github.io/"
    return site if name.lower() == f"{owner.lower()}.github.io" else f"{site}{name}/"


def configure(app: Sphinx, config: Config) -> None:
    """Add the buttons that lead to the repository, if there is one."""
    options = config.html_theme_options
    if options.get("repository_url"):
        config.ogp_site_url = site_address(options["repository_url"])
        config.html_theme_options = {
            **options,
            "repository_url": repository_address(options["repository_url"]),
            "repository_branch": BRANCH,
            "path_to_docs": "_sources",
            "launch_buttons": {
                **options.get("launch_buttons", {}),
                "colab_url": "https://colab.research.google.com",
            },
            "use_repository_button": True,
            "use_issues_button": True,
        }


def publish(app: Sphinx, error: Exception | None) -> None:
    """Stamp the chapters among the sources that the site offers, if there is a repository."""
    repository = app.config.html_theme_options.get("repository_url")
    if not repository or error is not None:
        return
    version = metadata.version("ncsn-core")
    wheel = f"{site_address(repository)}ncsn_core-{version}-py3-none-any.whl"
    for page, path in shown(app).items():
        offered = Path(app.outdir) / "_sources" / page
        if offered.is_file():
            offered.write_bytes(to_bytes(stamp(read(path), wheel)))


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
