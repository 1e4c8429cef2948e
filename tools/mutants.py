"""Mutation testing: small defects in what everything rests on, which the tests must see.

    python tools/mutants.py --count 300 --out _build/stress/mutants.json

draws so many of Cosmic Ray's mutants at random, runs the tests of the mutated module on each, and
writes how many were killed and which survived.  Those of type annotations, which nothing runs, and
those that are no Python any more, are left out.  A run that was interrupted is continued.  With
`--again` the survivors are tried once more, for which tests have been written since; the share of
all mutants is still estimated from the first time.
"""

import argparse
import ast
import difflib
import importlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing import Queue
from pathlib import Path
from typing import NamedTuple

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from scipy.stats import binomtest

ROOT = Path(__file__).parents[1]
LARGE = ("models", "results", "data/mnist")

TESTS = {
    "objectives": "test_objectives test_score_matching test_museum_of_bugs",
    "schedules": "test_schedules test_samplers_beyond",
    "divergence": "test_divergence test_museum_of_bugs",
    "checkpoints": "test_checkpoints",
    "generation": "test_generation",
    "parametrizations": "test_parametrizations",
    "pretrained": "test_checkpoints",
    "run": "test_training",
    "training": "test_training",
    "samplers/state": "test_samplers test_langevin test_samplers_beyond",
}
EVERYWHERE = "test_properties"
SUITE = "not (browser or colab or stress)"
NOT_NEEDED = {"test_benchmarks", "test_checks", EVERYWHERE}  # two are slow, one is run anyway


def tests_of_samplers() -> dict[str, str]:
    """The modules of `ncsn_core.samplers`, with the tests that import one of their names or all."""
    imported = {}
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imported[path.stem] = {
            a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names
        }
    found = {}
    for path in sorted((ROOT / "ncsn_core" / "samplers").glob("[a-z]*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        own = {node.name for node in body if isinstance(node, ast.FunctionDef)} | {"SAMPLERS"}
        found[f"samplers/{path.stem}"] = " ".join(
            test for test, names in imported.items() if names & own and test not in NOT_NEEDED
        )
    return found


TESTS = tests_of_samplers() | TESTS


class Mutant(NamedTuple):
    """A defect: which occurrence of which operator in which module."""

    module: str
    operator: str
    occurrence: int
    line: int


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, but for those of type annotations."""
    source = path_of(ROOT, module).read_text(encoding="utf-8")
    skipped = _annotations(source)
    found = []
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():
            continue
        positions = (
            start
            for node in ast_nodes(get_ast(source))
            for start, _ in kind().mutation_positions(node)
        )
        for occurrence, (line, column) in enumerate(positions):
            if not any(first <= (line, column) <= last for first, last in skipped):
                found.append(Mutant(module, name, occurrence, line))
    return found


def is_code(mutant: Mutant) -> bool:
    """Whether a mutant can be read: no test is needed to notice one that cannot."""
    source = path_of(ROOT, mutant.module).read_text(encoding="utf-8")
    try:
        ast.parse(mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence))
    except SyntaxError:
        return False
    return True


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations are."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            found = getattr(node, name, None)
            if found is not None:
                start = found.lineno, found.col_offset
                spans.append((start, (found.end_lineno, found.end_col_offset)))
    return spans


def path_of(root: Path, module: str) -> Path:
    """A module's file below a copy of the repository."""
    return root / "ncsn_core" / f"{module}.py"


def copy_package(folder: Path) -> None:
    """Put a copy of the package into a folder, with the large files linked."""
    package = folder / "ncsn_core"
    names = {Path(name).name for name in LARGE}
    ignored = shutil.ignore_patterns("__pycache__", *names)
    shutil.copytree(ROOT / "ncsn_core", package, ignore=ignored)
    for name in LARGE:
        (package / name).symlink_to(ROOT / "ncsn_core" / name)
    shutil.copy(ROOT / "book" / "claims.yml", package / "book" / "claims.yml")


def copy_of_the_repository(folder: Path) -> Path:
    """What the tests need."""
    copy_package(folder)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "book", "notebooks", "benchmarks", "tools"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_tests(folder: Path, module: str, seconds: float) -> str:
    """Run the tests of a module; returns "survived", "killed" or "killed (time)".

    In a fork of this process, which has the libraries loaded, and nothing of the package.
    """
    names = [f"tests/{name}.py" for name in [*TESTS[module].split(), EVERYWHERE]]
    child = multiprocessing.get_context("fork").Process(target=_pytest, args=(folder, names))
    child.start()
    child.join(seconds)
    if child.is_alive():
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
        return "killed (time)"
    return "killed" if child.exitcode else "survived"


def _pytest(folder: Path, names: list[str]) -> None:
    os.setpgrp()
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    os.environ["PYTHONPATH"] = str(folder)  # of what a test starts
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", SUITE]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the libraries are loaded
    checked = "--jaxtyping-packages=ncsn_core,beartype.beartype"
    code = pytest.main([*options, checked, *names])
    import ncsn_core

    assert Path(ncsn_core.__file__).is_relative_to(folder)
    os._exit(int(code))


def load_libraries() -> None:
    """Import what the package and its tests import, so that each mutant need not."""
    for path in [*(ROOT / "ncsn_core").rglob("*.py"), *(ROOT / "tests").glob("*.py")]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                ours = (ROOT / folder / f"{top}.py" for folder in ("tests", "tools", "benchmarks"))
                packages = ("ncsn_core", "ncsn_book")
                if top not in packages and not any(path.exists() for path in ours):
                    importlib.import_module(name)


def examine(mutant: Mutant, folder: Path, seconds: float) -> dict[str, object]:
    """Plant a mutant, test, and put the module right again."""
    path = path_of(folder, mutant.module)
    right = path.read_text(encoding="utf-8")
    wrong = mutate_code(right, get_operator(mutant.operator)(), mutant.occurrence)
    change = [
        text.rstrip()
        for text in difflib.unified_diff(right.splitlines(), wrong.splitlines(), n=0, lineterm="")
        if not text.startswith(("---", "+++", "@@"))
    ]
    try:
        path.write_text(wrong, encoding="utf-8")
        outcome = run_tests(folder, mutant.module, seconds)
    finally:
        path.write_text(right, encoding="utf-8")
    return mutant._asdict() | {"change": change, "outcome": outcome}


def main() -> None:
    """Draw, examine, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="copies at a time, one core each")
    parser.add_argument("--again", action="store_true", help="try the survivors once more")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "stress" / "mutants.json")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    everything = [mutant for module in TESTS for mutant in mutants(module)]
    order = random.Random(options.seed).sample(everything, len(everything))
    drawn = list(itertools.islice(filter(is_code, order), options.count))
    done = {}
    if options.out.exists():
        for row in json.loads(options.out.read_text())["mutants"]:
            done[Mutant(row["module"], row["operator"], row["occurrence"], row["line"])] = row
    survivors = {m for m, row in done.items() if options.again and row["outcome"] == "survived"}
    wanted = [mutant for mutant in drawn if mutant not in done or mutant in survivors]
    print(f"{options.count} of {len(everything)} mutants; {len(done)} are examined already")

    load_libraries()
    fork = multiprocessing.get_context("fork")
    tasks, results = fork.Queue(), fork.Queue()
    for mutant in sorted(wanted, key=lambda mutant: mutant.module):
        tasks.put(mutant)
    for _ in range(options.jobs):
        tasks.put(None)
        fork.Process(target=work, args=(tasks, results)).start()
    for _ in wanted:
        mutant, row = results.get()
        if mutant is None:
            sys.exit(row)
        done[mutant] = row | {"first": done.get(mutant, row)["outcome"]}
        place = f"{row['module']}:{row['line']}"
        print(f"{len(done)}: {row['outcome']}: {place} {row['change']}", flush=True)
        write(options, everything, done)
    print(json.dumps(summary(list(done.values())), indent=1))


def work(tasks: Queue, results: Queue) -> None:
    """Examine mutants in an own copy, until there are no more."""
    limits: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = copy_of_the_repository(Path(place))
        while (mutant := tasks.get()) is not None:
            module = mutant.module
            if module not in limits:
                began = time.monotonic()
                if run_tests(folder, module, 600) != "survived":
                    results.put((None, f"the tests of {module} fail without a mutant"))
                    return
                limits[module] = 20 + 4 * (time.monotonic() - began)
            results.put((mutant, examine(mutant, folder, limits[module])))


def summary(rows: list[dict[str, object]]) -> dict[str, float]:
    """How many were killed the first time, with the interval for all mutants, and how many now."""
    killed = sum(str(row["first"]).startswith("killed") for row in rows)
    now = sum(str(row["outcome"]).startswith("killed") for row in rows)
    interval = binomtest(killed, len(rows)).proportion_ci(method="wilson")
    return {
        "examined": len(rows),
        "killed": killed,
        "killed now": now,
        "rate": killed / len(rows),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def write(
    options: argparse.Namespace, everything: list[Mutant], done: dict[Mutant, dict[str, object]]
) -> None:
    """Keep what is known so far."""
    rows = list(done.values())
    content = {"seed": options.seed, "of": len(everything), **summary(rows), "mutants": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".tmp").write_text(json.dumps(content, indent=1))
    options.out.with_suffix(".tmp").replace(options.out)


if __name__ == "__main__":
    main()
