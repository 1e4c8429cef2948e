"""The files that describe the environment agree with each other, and the environment works."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PYPI_NAMES = {"pytorch": "torch"}


def parse(lines):
    """Map each canonical package name to the set of its version bounds."""
    requirements = map(Requirement, lines)
    return {canonicalize_name(item.name): item.specifier for item in requirements}


def lock_entries():
    """Return ``(requirement, hashes)`` for every entry of requirements.lock."""
    text = re.sub(r"^\s*#.*$", "", LOCK, flags=re.MULTILINE).replace("\\\n", " ")
    entries = []
    for line in filter(str.strip, text.splitlines()):
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        entries.append((Requirement(requirement), hashes))
    return entries


def run_tool(root, *arguments):
    return subprocess.run(
        [sys.executable, root / "tools" / "environment.py", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def copied_root(tmp_path):
    """A folder with copies of the generator, its input and its output."""
    for name in ("pyproject.toml", "environment.yml", "tools/environment.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


# environment.yml


def test_conda_environment_lists_what_pyproject_asks_for():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    (pip,) = (item["pip"] for item in dependencies if isinstance(item, dict))
    conda = [item for item in dependencies if isinstance(item, str)]
    python = next(item for item in conda if item.startswith("python="))
    packages = [item for item in conda if item not in (python, "pip")]
    names = [re.match(r"[\w-]+", item)[0] for item in packages]
    packages = [
        PYPI_NAMES.get(name, name) + item.removeprefix(name)
        for name, item in zip(names, packages, strict=True)
    ]

    assert pip[-1] == "-e ."
    assert PROJECT["requires-python"] == python.replace("python=", ">=")
    wanted = PROJECT["dependencies"] + EXTRAS["notebooks"] + EXTRAS["book"]
    assert parse(packages + pip[:-1]) == parse(wanted)


def test_conda_takes_torch_and_torchvision_from_the_same_source():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    conda = [item for item in dependencies if isinstance(item, str)]
    assert any(item.startswith("pytorch>=") for item in conda)
    assert any(item.startswith("torchvision>=") for item in conda)


@pytest.mark.slow
def test_committed_conda_environment_is_current():
    result = run_tool(ROOT, "--check")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_stale_conda_environment_is_reported_and_rewritten(copied_root):
    pyproject = copied_root / "pyproject.toml"
    text = pyproject.read_text("utf-8")
    assert '"tqdm>=4.66"' in text
    pyproject.write_text(text.replace('"tqdm>=4.66"', '"tqdm>=4.67"', 1), "utf-8")
    before = (copied_root / "environment.yml").read_text("utf-8")

    stale = run_tool(copied_root, "--check")
    assert stale.returncode == 1
    assert "does not agree with pyproject.toml" in stale.stderr
    assert (copied_root / "environment.yml").read_text("utf-8") == before

    assert run_tool(copied_root).returncode == 0
    assert "tqdm>=4.67" in (copied_root / "environment.yml").read_text("utf-8")
    assert run_tool(copied_root, "--check").returncode == 0


@pytest.mark.slow
def test_missing_conda_environment_is_reported(copied_root):
    (copied_root / "environment.yml").unlink()
    assert run_tool(copied_root, "--check").returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tqdm>=4.66", "tqdm>=4.66; sys_platform == 'linux'", "cannot translate"),
        ("tqdm>=4.66", "papermill>=2.5", "same bounds everywhere"),
        (">=3.11", ">=3.11,<4", "lower bound on the minor version"),
    ],
)
def test_untranslatable_requirement_is_refused(copied_root, old, new, message):
    pyproject = copied_root / "pyproject.toml"
    text = pyproject.read_text("utf-8")
    assert f'"{old}"' in text
    pyproject.write_text(text.replace(f'"{old}"', f'"{new}"', 1), "utf-8")
    before = (copied_root / "environment.yml").read_text("utf-8")

    result = run_tool(copied_root)
    assert result.returncode == 1
    assert message in result.stderr
    assert (copied_root / "environment.yml").read_text("utf-8") == before


# requirements.lock


def test_lock_pins_every_direct_dependency_within_its_bounds():
    pins = {}
    for requirement, _ in lock_entries():
        pins.setdefault(canonicalize_name(requirement.name), []).append(requirement.specifier)
    for group in (PROJECT["dependencies"], *EXTRAS.values()):
        for name, bounds in parse(group).items():
            assert name in pins, f"{name} is not in requirements.lock: run `make lock`"
            for pin in pins[name]:
                (exact,) = pin
                assert exact.operator == "=="
                assert bounds.contains(exact.version), f"{name}{pin} is outside {bounds}"


def test_every_lock_entry_is_exact_and_hashed():
    entries = lock_entries()
    assert len(entries) > len(PROJECT["dependencies"])
    for requirement, hashes in entries:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, f"{requirement} has no hash"
        for value in hashes:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", value), requirement


def test_lock_names_no_index_and_no_place():
    entries = lock_entries()
    assert all(requirement.url is None for requirement, _ in entries)
    options = set(re.findall(r"(?<!\S)--?[A-Za-z][\w-]*", LOCK))
    assert options == {"--hash"}
    assert not re.search(r"://|(?<!\S)[./~]|\bfile:", LOCK)


def test_lock_holds_the_installer_where_make_looks_for_it():
    block = re.search(r"^uv==.*?# via", LOCK, flags=re.MULTILINE | re.DOTALL)[0]
    assert "--hash=sha256:" in block
    assert re.findall(r"^[a-z][\w.-]*==", block, flags=re.MULTILINE) == ["uv=="]


# What is installed


def test_torch_and_torchvision_are_a_matching_pair():
    # An unmatched pair has no compiled operators: "operator torchvision::nms does not exist".
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), iou_threshold=0.5)
    assert kept.tolist() == [1, 2]


@pytest.mark.slow
def test_wheel_carries_every_file_of_the_package(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run(
        [*command, "--directory", tmp_path], cwd=ROOT, check=True, capture_output=True, timeout=120
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("ncsn_core/")}
    files = (path for path in (ROOT / "ncsn_core").rglob("*") if path.is_file())
    present = {
        path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts
    }
    assert packed == present | {"ncsn_core/book/claims.yml"}  # the ledger travels along


# --- the tree ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked():
    """The files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def test_no_file_names_a_folder_of_somebodys_machine(tracked):
    place = re.compile(rb"(?<![\w.~{])/(?:home|root|Users|work|tmp)/[\w.-]+")
    for path in tracked:
        if path.suffix in (".safetensors", ".gz", ".png", ".woff2") or path == Path(__file__):
            continue
        found = place.search(path.read_bytes())
        assert found is None, f"{path.relative_to(ROOT)}: {found[0].decode()}"


@pytest.mark.parametrize(
    ("folder", "budget"),
    [
        ("notebooks", 13.5),
        ("ncsn_core/models", 12),
        ("ncsn_core/data", 11),
        ("ncsn_core/results", 2.75),
        ("", 40),
    ],
)
def test_a_folder_stays_within_its_budget(tracked, folder, budget):
    inside = [path for path in tracked if path.is_relative_to(ROOT / folder) and path.is_file()]
    assert 0 < sum(path.stat().st_size for path in inside) < budget * 2**20


def test_no_notebook_is_too_large_to_be_shown(tracked):
    assert max(path.stat().st_size for path in tracked if path.suffix == ".ipynb") < 1_500_000
