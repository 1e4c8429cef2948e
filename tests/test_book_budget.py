"""How the stored outputs were made: in which time, on whatever machine, and from which commit."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# In units of the reference computation: 25 and 13 seconds where that takes 0.16, two at a time.
CHAPTER, TRAINING = 155, 80
WORDS = 2800  # of prose and captions; a formula is one, what is folded is none
SECOND_EDITION = [f"{number:02}" for number in range(1, 10)]
NOTEBOOKS = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/training/*.ipynb")]


def record_of(path):
    record = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("ncsn")
    assert record, f"{path.name} has no stored outputs: commit it, then `make refresh`"
    return record


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_to_its_time(path):
    """Counted in seconds of a computation at the same moment, so that a slow machine passes."""
    record = record_of(path)
    budget = TRAINING if path.parent.name == "training" else CHAPTER
    assert record["seconds"] / record["reference_seconds"] <= budget


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_come_from_a_commit_and_nothing_besides(path):
    """Whoever checks it out has the code, the cells and the records that made them."""
    commit = record_of(path)["commit"]
    assert re.fullmatch("[0-9a-f]{12}", commit), "commit everything, then `make refresh`"


def words(notebook):
    """How many words a reader meets in a chapter, outside of folded boxes and code."""
    text = ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text += unfolded("".join(cell["source"]))
        else:
            text += cell["metadata"].get("mystnb", {}).get("figure", {}).get("caption", "")
        text += "\n"
    text = re.sub(r"\$\$.*?\$\$|\$.*?\$", " formula ", text, flags=re.DOTALL)
    text = re.sub(r"^ *\d+\. ", "", text, flags=re.MULTILINE)  # of a list
    return len(re.findall(r"[^\W_][\w'’.,:/-]*", text))


def unfolded(source):
    """Markdown without code, options of directives, and the boxes that a page folds."""
    kept, boxes = [], []  # the marks of open boxes, and whether they are folded
    for line, following in zip(lines := source.split("\n"), [*lines[1:], ""], strict=True):
        if match := re.match(r"\s*(`{3,}|:{3,})(?:\{(\S+)\})?(.*)", line):
            mark, name, title = match.groups()
            if boxes and boxes[-1][0] == mark and not name and not title:
                boxes.pop()
            else:
                folded = not name or name.startswith(("solution", "dropdown"))
                folded = folded or "dropdown" in following
                boxes.append((mark, folded))
                kept.append("" if folded else title)
        elif not any(folded for _, folded in boxes) and not re.match(r"\s*:[\w-]+:", line):
            kept.append(line)
    return "\n".join(kept)


@pytest.mark.parametrize("number", SECOND_EDITION)
def test_a_chapter_is_short(number):
    (path,) = ROOT.glob(f"notebooks/{number}_*.ipynb")
    assert words(json.loads(path.read_text(encoding="utf-8"))) <= WORDS


def test_folded_boxes_and_code_are_not_words():
    box = ":::{{admonition}} Proof\n{}\nhidden words\n```\nx = 1\n```\n:::\nshown $x + y$"
    assert words({"cells": [{"cell_type": "markdown", "source": box.format("")}]}) == 5
    folded = box.format(":class: dropdown")
    assert words({"cells": [{"cell_type": "markdown", "source": folded}]}) == 2
