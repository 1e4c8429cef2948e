"""False alarms: the claims of chapters again and again, each time with another seed.

    python tools/alarms.py --seeds 300 02_score_matching 06_langevin_dynamics

runs the chapters' own cells (`tests/chapters.py`) and counts how often each claim that should hold
fails.  A run that was interrupted is continued; `tools/promises.py` takes the counts up.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "_build" / "stress" / "false alarms.json"


def run(chapter: str, seed: int) -> dict[str, bool]:
    """Whether each claim of a chapter holds with a seed."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "chapters.py", chapter, json.dumps({"seed": seed})],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"(the chapter itself)": False}
    rows = json.loads(done.stdout.splitlines()[-1])
    return {f"{number} {part}".strip(): holds for number, part, _, holds in rows}


def main() -> None:
    """Run, count, keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("chapters", nargs="+")
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2, help="chapters at a time, one core each")
    options = parser.parse_args()
    found = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    wanted = [
        (chapter, seed)
        for seed in range(1, options.seeds + 1)  # 0 is the one that the book shows
        for chapter in options.chapters
        if str(seed) not in found.get(chapter, {})
    ]

    def one(pair: tuple[str, int]) -> None:
        chapter, seed = pair
        holds = run(chapter, seed)
        found.setdefault(chapter, {})[str(seed)] = holds
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.with_suffix(".tmp").write_text(json.dumps(found, indent=1), encoding="utf-8")
        OUT.with_suffix(".tmp").replace(OUT)
        print(chapter, seed, [name for name, held in holds.items() if not held], flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, wanted))


if __name__ == "__main__":
    main()
