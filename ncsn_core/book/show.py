"""What a chapter shows beside its figures: tables, source, and whether an answer is right."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import torch
from IPython.display import Markdown, display


def table(header: Iterable[Any], *rows: Iterable[Any]) -> None:
    """Display a table; cells are turned into text and may hold Markdown."""
    display(Markdown(markdown_table(header, rows)))


def body(function: Callable[..., Any]) -> None:
    """Display the code of a function of the package, and where it stands.

    Without its signature and docstring.
    """
    file = function.__module__.replace(".", "/")
    lines = f"`{file}.py`, `{function.__qualname__}`:\n\n```python\n{body_of(function)}\n```"
    display(Markdown(lines))


def check(answer: Any, expected: Any, *, on: tuple[Any, ...] = (), within: float = 0.01) -> None:
    """Print whether a reader's answer to an exercise is right, and how far off it is if not.

    Args:
        answer: a number, a tensor, a text, or a function; `...` where nobody has answered yet.
        expected: the same, as the chapter computes it.
        on: what both functions are called with.
        within: the largest error that still counts as right, over the largest expected entry.
    """
    if answer is ...:
        print("No answer yet. Put yours in place of the three dots and run the cell again.")
        return
    if callable(expected):
        answer, expected = answer(*on), expected(*on)
    if isinstance(expected, str):
        print("Right." if str(answer).strip().lower() == expected.lower() else "Not yet.")
        return
    answer, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (answer, expected))
    if answer.shape != expected.shape:
        print(f"Not yet: the shape is {[*answer.shape]}, and not {[*expected.shape]}.")
        return
    error = ((answer - expected).abs().max() / expected.abs().max()).item()
    off = f"{100 * error:.2g}%" if error < 0.1 else f"{error:.0%}"
    print("Right." if error <= within else f"Not yet: off by {off}.")


def markdown_table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table.

    Raises:
        ValueError: for a row whose length is not that of the header.
    """
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    width = len(lines[0])
    for row in lines:
        if len(row) != width:
            raise ValueError(f"a row has {len(row)} cells and the header has {width}: {row}")
    lines.insert(1, ["---"] * width)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def body_of(function: Callable[..., Any]) -> str:
    """The source of a function without its signature and docstring, comments included."""
    source = textwrap.dedent(inspect.getsource(function))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    statements = definition.body
    if ast.get_docstring(definition) is not None and len(statements) > 1:
        start = statements[0].end_lineno or 0
    else:
        start = statements[0].lineno - 1
    return textwrap.dedent("\n".join(source.splitlines()[start:])).strip()
