"""Write environment.yml, for conda and Binder, from pyproject.toml.

python tools/environment.py            write the file
python tools/environment.py --check    write nothing; exit with status 1 if the file is stale

The environment holds what the notebooks and the book need. Only the standard library is used, so
that the script runs before anything is installed.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("notebooks", "book")

# PyPI name -> conda-forge name. torch and torchvision must be a matching pair from one source, and
# both are compiled against the other two. Everything else is installed by pip.
CONDA_NAMES = {
    "torch": "pytorch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "pillow": "pillow",
}

HEADER = """\
# Written by tools/environment.py from pyproject.toml: edit that file, then run `make lock`.
# conda env create -f environment.yml && conda activate ncsn-book
"""


def split_requirement(requirement: str) -> tuple[str, str]:
    """Split ``"jupyter-book >=1.0.4, <2"`` into ``("jupyter-book", ">=1.0.4,<2")``.

    Raises:
        ValueError: for a requirement with an extra, a marker or a URL, which have no counterpart
            in a conda environment.
    """
    compact = requirement.replace(" ", "")
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)([<>=!~,.*\w]*)", compact)
    if match is None:
        raise ValueError(
            f"cannot translate {requirement!r} for conda: "
            "write it as a name and version bounds, such as 'papermill>=2.6'"
        )
    return match[1], match[2]


def collect_requirements(project: dict) -> dict[str, str]:
    """Map the name of each requirement of the package and of EXTRAS to its version bounds.

    Raises:
        ValueError: if one package is listed twice with different bounds.
    """
    listed = list(project["dependencies"])
    for extra in EXTRAS:
        listed += project["optional-dependencies"][extra]
    requirements: dict[str, str] = {}
    for name, bounds in map(split_requirement, listed):
        if requirements.setdefault(name, bounds) != bounds:
            raise ValueError(
                f"pyproject.toml lists {name} as {name}{requirements[name]} and as {name}{bounds}: "
                "give it the same bounds everywhere"
            )
    return requirements


def render(project: dict) -> str:
    """Return the text of environment.yml for the ``[project]`` table of pyproject.toml."""
    oldest = re.fullmatch(r">=(3\.\d+)", project["requires-python"])
    if oldest is None:
        raise ValueError(
            f"requires-python is {project['requires-python']!r}: "
            "write it as a lower bound on the minor version, such as '>=3.11'"
        )
    requirements = collect_requirements(project)
    # Binder reads an exact minor version only; the oldest is the one that the lock is made for.
    conda = [f"python={oldest[1]}", "pip"]
    pip = []
    for name, bounds in requirements.items():
        if name in CONDA_NAMES:
            conda.append(CONDA_NAMES[name] + bounds)
        else:
            pip.append(name + bounds)
    lines = ["name: ncsn-book", "channels:", "  - conda-forge", "dependencies:"]
    lines += [f"  - {item}" for item in conda]
    lines += ["  - pip:"]
    lines += [f"      - {item}" for item in [*pip, "-e ."]]
    return HEADER + "\n".join(lines) + "\n"


def main() -> int:
    """Write environment.yml, or with --check compare it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with status 1 if it is stale")
    arguments = parser.parse_args()

    target = ROOT / "environment.yml"
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    try:
        text = render(project)
    except ValueError as error:
        print(f"tools/environment.py: {error}", file=sys.stderr)
        return 1

    if not arguments.check:
        target.write_text(text, encoding="utf-8")
        print(f"wrote {target.name}")
        return 0
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        print(f"{target.name} agrees with pyproject.toml")
        return 0
    print(
        f"{target.name} does not agree with pyproject.toml: run `python tools/environment.py`",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
