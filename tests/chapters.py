"""A chapter's own claims, run in this process: with other parameters, over a package with a defect.

    python tests/chapters.py 02_score_matching '{"seed": 7}'

prints the verdicts of its claims as JSON, {"24 annealing": [value, holds], ...}.  Only the
cells are run that a claim rests on; what they draw is thrown away.  A third argument names a defect
of `defects.py`, which is planted.
"""

import ast
import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODULES = {
    "claims",
    "figures",
    "player",
    "plt",
}  # whose functions change nothing that a claim rests on
INSIDES = ast.FunctionDef | ast.Lambda | ast.ClassDef | ast.ListComp | ast.SetComp | ast.DictComp
INSIDES |= ast.GeneratorExp


def verdicts(
    chapter: str,
    parameters: dict[str, Any],
    defect: Any = None,
    *,
    live: bool = False,
) -> dict[str, tuple[float, bool]]:
    """What the `claims.check` calls of a chapter find, by the names of the measurements.

    `live` leaves out the claims about records of earlier runs.
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
    if defect is not None and not defect.where:
        sources = [source.replace(defect.right, defect.wrong) for source in sources]
    run = claimed(sources, live)
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
    for number in reversed(range(len(sources))):
        made, changed, used = names(sources[number])
        checks = sources[number].count("claims.check(")
        records = sources[number].count("provenance=") if live else 0
        if checks > records or (made | changed) & needed:
            kept.add(number)
            needed = needed - made | used
    return kept


def names(source: str) -> tuple[set[str], set[str], set[str]]:
    """The variables that a cell makes anew, may change, and uses; rather one too many used."""
    made: set[str] = set()
    changed: set[str] = set()
    used: set[str] = set()
    for statement in ast.parse(source).body:
        stored, touched = stores(statement)
        used |= loads(statement) - made
        changed |= stored | touched
        if not isinstance(statement, ast.If | ast.While | ast.Try | ast.AugAssign):
            made |= stored
    return made, changed, used


def loads(statement: ast.stmt) -> set[str]:
    """What a statement looks up, but for the variables of its own functions and comprehensions."""
    found, own = set(), set()
    for node in ast.walk(statement):
        match node:
            case ast.Name(name, ast.Load()):
                found.add(name)
            case ast.comprehension(part) | ast.For(part) | (ast.FunctionDef() as part):
                own |= {n.id for n in ast.walk(part) if _is_stored(n)}
            case ast.arg(name):
                own.add(name)
    return found - own


def stores(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """What a statement makes, and what else it may change.

    A call on a line of its own may change the object of its method or its arguments, and `fit` the
    network that it is given.
    """
    made, changed = set(), set()
    for node in at_top(statement):
        match node:
            case ast.Name(name, ast.Store()) | ast.FunctionDef(name) | ast.ClassDef(name):
                made.add(name)
            case ast.alias(name, other):
                made.add((other or name).partition(".")[0])
            case ast.Attribute(ctx=ast.Store()) | ast.Subscript(ctx=ast.Store()):
                changed |= root(node)
            case ast.Expr(ast.Call(ast.Attribute() as method)):
                changed |= root(method) - MODULES
            case ast.Expr(ast.Call(_, given)) | ast.Call(ast.Name("fit"), given):
                changed |= {part.id for part in given if isinstance(part, ast.Name)}
    return made, changed


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def at_top(node: ast.AST) -> Iterator[ast.AST]:
    """A statement's parts, but for the insides of functions and comprehensions: their own names."""
    yield node
    if not isinstance(node, INSIDES):
        for part in ast.iter_child_nodes(node):
            yield from at_top(part)


def root(node: ast.AST) -> set[str]:
    """The variable whose part this is: `a` of `a.b[0].c`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


if __name__ == "__main__":
    chosen = None
    if len(sys.argv) > 3:
        import defects

        (chosen,) = (d for d in defects.DEFECTS if d.name == sys.argv[3])
        if chosen.where:
            defects.plant(chosen)
    print(json.dumps(verdicts(sys.argv[1], json.loads(sys.argv[2]), chosen)))
