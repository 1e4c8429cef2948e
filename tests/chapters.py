"""A chapter's own claims, run in this process: with other parameters, over a package with a defect.

    python tests/chapters.py 02_score_matching '{"seed": 7}'

prints the verdicts of its claims as JSON, {"24 annealing": [value, holds], ...}.  Only the
cells are run that a claim rests on; what they draw is thrown away.  A third argument, as JSON
[right, wrong], replaces code of the chapter.
"""

import ast
import contextlib
import io
import json
import os
import shutil
import symtable
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LARGE = ("models", "results", "data/mnist")


def copy_package(folder: Path) -> None:
    """Put a copy of the package into a folder, with the large files linked."""
    package = folder / "ncsn_core"
    names = {Path(name).name for name in LARGE}
    ignored = shutil.ignore_patterns("__pycache__", *names)
    shutil.copytree(ROOT / "ncsn_core", package, ignore=ignored)
    for name in LARGE:
        (package / name).symlink_to(ROOT / "ncsn_core" / name)
    shutil.copy(ROOT / "book" / "claims.yml", package / "book" / "claims.yml")


def verdicts(
    chapter: str,
    parameters: dict[str, Any],
    replaced: tuple[str, str] | None = None,
    *,
    whole: bool = False,
    live: bool = False,
) -> dict[str, tuple[float, bool]]:
    """What the `claims.check` calls of a chapter find, by the names of the measurements.

    `whole` runs every cell, and `live` leaves out the claims about records of earlier runs.
    """
    import matplotlib

    matplotlib.use("agg")
    import IPython.display
    import matplotlib.pyplot as plt

    from ncsn_core.book import claims
    from ncsn_core.book.ledger import measurement_name

    found = {}

    def note(verdict: claims.Verdict) -> None:
        found[measurement_name(verdict.claim, verdict.part)] = verdict.value, verdict.holds

    claims._show = note
    plt.show = lambda *_, **__: plt.close("all")
    IPython.display.display = lambda *_, **__: None
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = code_cells(chapter)
    sources = ["".join(cell["source"]) for cell in cells]
    if replaced is not None:
        assert sum(source.count(replaced[0]) for source in sources) == 1, f"no {replaced[0]!r}"
        sources = [source.replace(*replaced) for source in sources]
    run = set(range(len(cells))) if whole else claimed(sources, live)
    os.chdir(ROOT / "notebooks")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (cell, source) in enumerate(zip(cells, sources, strict=True)):
            settings = "parameters" in cell["metadata"].get("tags", [])
            if number in run or settings:
                exec(compile(source, f"{chapter}, code cell {number + 1}", "exec"), namespace)
            if settings:
                unknown = parameters.keys() - namespace.keys()
                assert not unknown, f"{chapter} has no parameter {unknown}"
                namespace |= parameters
            plt.close("all")
    return found


def code_cells(chapter: str) -> list[dict[str, Any]]:
    """The cells of a chapter that hold code."""
    path = ROOT / "notebooks" / f"{chapter}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def claimed(sources: list[str], live: bool = False) -> set[int]:
    """The cells that check a claim, and those before them that make or change what they use."""
    needed: set[str] = set()
    kept = set()
    modules = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(ast.parse("\n".join(sources)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for number in reversed(range(len(sources))):
        names = Names(modules)
        for statement in ast.parse(sources[number]).body:
            names.read(statement)
        checks = sources[number].count("claims.check(")
        records = sources[number].count("provenance=") if live else 0
        if checks > records or (names.made | names.changed) & needed:
            kept.add(number)
            needed = needed - names.made | names.used
    return kept


class Names:
    """The variables that statements, one after the other, use, make anew, and may change.

    A call may change the object of its method (but no module), and a call of a function, on a line
    of its own or of `fit`, its arguments.
    """

    def __init__(self, modules: set[str]) -> None:
        self.modules = modules
        self.used: set[str] = set()
        self.made: set[str] = set()
        self.changed: set[str] = set()

    def read(self, statement: ast.stmt) -> None:
        """Take one more statement in."""
        if isinstance(statement, ast.For | ast.With):
            for part in ast.iter_child_nodes(statement):
                if isinstance(part, ast.stmt):
                    self.read(part)
                elif isinstance(part, ast.withitem):
                    self.look_up(part.context_expr)
                    self.look_up(part.optional_vars)
                else:
                    self.look_up(part)
        else:
            self.look_up(statement)
        for node in outside_functions(statement):
            if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
                self.changed |= root(node)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                self.changed |= changed(node.value) - self.modules
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                self.changed |= changed(node) if node.func.id == "fit" else set()

    def look_up(self, node: ast.AST | None) -> None:
        """The variables of the notebook in a piece of code: not those within its functions."""
        if node is None:
            return
        stored = {
            name.id
            for name in ast.walk(node)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        if isinstance(node, ast.expr) and stored and not _loads(node):  # of a loop: for x, y in …
            self.made |= stored
            return
        top = symtable.symtable(ast.unparse(node), "cell", "exec")
        symbols = top.get_symbols()
        made = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
        used = {s.get_name() for s in symbols if s.is_referenced()}
        tables = top.get_children()
        while tables:
            table = tables.pop()
            tables += table.get_children()
            used |= {s.get_name() for s in table.get_symbols() if s.is_global()}
        self.used |= used - self.made
        if not isinstance(node, ast.If | ast.While | ast.Try | ast.AugAssign):
            self.made |= made
        self.changed |= made


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """A statement's parts, but for the bodies of functions: what these change is their own."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
        for part in ast.iter_child_nodes(node):
            yield from outside_functions(part)


def changed(call: ast.Call) -> set[str]:
    """What a call may change."""
    if isinstance(call.func, ast.Attribute):
        return root(call.func)
    return {argument.id for argument in call.args if isinstance(argument, ast.Name)}


def _loads(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) for n in ast.walk(node))


def root(node: ast.AST) -> set[str]:
    """The variable whose part this is: `a` of `a.b[0].c`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


if __name__ == "__main__":
    print(json.dumps(verdicts(sys.argv[1], *map(json.loads, sys.argv[2:]))))
