"""A chapter's own cells, run in this process: with other parameters, over a package with a defect.

    python tests/chapters.py 02_score_matching '{"seed": 7}'

prints the verdicts of the chapter's claims as JSON, [[claim, part, value, holds], ...].  Figures
are drawn and thrown away.
"""

import contextlib
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def verdicts(chapter: str, parameters: dict[str, Any]) -> list[tuple[int, str, float, bool]]:
    """What the `claims.check` calls of a chapter find."""
    import matplotlib

    matplotlib.use("agg")
    import IPython.display
    import matplotlib.pyplot as plt

    from ncsn_core.book import claims

    found = []
    claims._show = lambda verdict: found.append(
        (verdict.claim, verdict.part, verdict.value, verdict.holds)
    )
    plt.show = lambda *_, **__: plt.close("all")
    IPython.display.display = lambda *_, **__: None
    namespace: dict[str, Any] = {"__name__": "__main__"}
    notebook = json.loads((ROOT / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    os.chdir(ROOT / "notebooks")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] != "code":
                continue
            source = "".join(cell["source"])
            exec(compile(source, f"{chapter}, cell {number + 1}", "exec"), namespace)
            if "parameters" in cell["metadata"].get("tags", []):
                unknown = parameters.keys() - namespace.keys()
                assert not unknown, f"{chapter} has no parameter {unknown}"
                namespace |= parameters
            plt.close("all")
    return found


if __name__ == "__main__":
    print(json.dumps(verdicts(sys.argv[1], json.loads(sys.argv[2]))))
