"""Notebooks as files: reading them, and removing what an execution leaves behind."""

import ast
import base64
import io
import json
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from nbformat import NotebookNode
from PIL import Image, ImageChops

from ncsn_core.book.claims import METADATA_KEY
from ncsn_core.book.tree import BookError

PROBE_TAG = "ncsn-provenance"
TIME_TAG = "measures-time"
PAPERMILL_ERROR_TAG = "papermill-error-cell-tag"
WHEN_AND_WHERE = ("commit", "device", "threads", "time", "measured")

MOST_TINT = 12  # of 255, that a palette may change the mean of 4 × 4 pixels; more is seen as bands


def read(path: Path) -> NotebookNode:
    """Return the notebook at `path`, every cell with an id; raise `BookError` when it is none."""
    try:
        notebook: NotebookNode = nbformat.read(path, as_version=4)
        if notebook.nbformat_minor < 5:
            notebook = nbformat.v4.upgrade(notebook)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, KeyError) as error:
        raise BookError(f"{path} is not a notebook, or a damaged one: {error}") from error
    return notebook


def to_bytes(notebook: NotebookNode) -> bytes:
    """Return the notebook as the bytes of an `.ipynb` file."""
    text: str = nbformat.writes(notebook)
    return f"{text}\n".encode()


def default_parameters(notebook: NotebookNode) -> dict[str, Any]:
    """Return what the cell tagged `parameters` assigns, by name.

    The value is None where it is not a literal.
    """
    defaults: dict[str, Any] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            defaults.update(_assignments(cell.source))
    return defaults


def _assignments(source: str) -> dict[str, Any]:
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return {}
    found = {}
    for statement in statements:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        found.update({name.id: _literal(value) for name in targets if isinstance(name, ast.Name)})
    return found


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def measures_time(notebook: NotebookNode) -> bool:
    """Return whether a cell is tagged `measures-time`, as those are whose result it spoils."""
    return any(TIME_TAG in cell.metadata.get("tags", []) for cell in notebook.cells)


def is_executed(notebook: NotebookNode) -> bool:
    """Return whether any cell of the notebook has been executed since its outputs were cleared."""
    return any(cell.get("execution_count") is not None for cell in notebook.cells)


def without_traces(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without what an execution leaves behind besides its outputs.

    The probe cell, papermill's marks and timings, widget state and the exact Python version go, so
    that executing twice gives the same file; pictures are stored in fewer bytes.
    """
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if PROBE_TAG in tags or PAPERMILL_ERROR_TAG in tags:
            continue
        dropped = {"papermill", "execution"} | (set() if tags else {"tags"})
        metadata = {name: cell.metadata[name] for name in cell.metadata if name not in dropped}
        cells.append({**cell, "metadata": metadata})
    metadata = {
        name: value
        for name, value in notebook.metadata.items()
        if name not in ("papermill", "widgets")
    }
    metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    metadata["language_info"] = {"name": "python"}
    clean: NotebookNode = nbformat.from_dict({**notebook, "cells": cells, "metadata": metadata})
    for output in (output for cell in clean.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            png = smaller_png(base64.b64decode(output.data["image/png"]))
            output.data["image/png"] = base64.b64encode(png).decode()
    return clean


def smaller_png(png: bytes) -> bytes:
    """Return a figure in fewer bytes: with a palette, if nobody can see that, else without alpha.

    Pictures of at most 256 colors stay the same to the pixel. Transparent and moving ones, those
    in gray and those that have a palette are returned as they are.
    """
    with Image.open(io.BytesIO(png)) as picture:
        if picture.mode not in ("RGB", "RGBA") or getattr(picture, "is_animated", False):
            return png
        if np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
            return png
        full = picture.convert("RGB")
        few = full.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
        tint = ImageChops.difference(full.reduce(4), few.convert("RGB").reduce(4))
        kept = few if np.asarray(tint).max() <= MOST_TINT else full
        file = io.BytesIO()
        kept.save(file, "PNG", optimize=True, dpi=picture.info.get("dpi"))
    return min(png, file.getvalue(), key=len)


def same_content(first: NotebookNode, second: NotebookNode) -> bool:
    """Return whether cells and outputs agree, whenever, wherever and by whichever commit made."""
    return _content(first) == _content(second)


def _content(notebook: NotebookNode) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(json.dumps(without_traces(notebook).cells))
    for cell in cells:
        for output in cell.get("outputs", []):
            record = output.get("metadata", {}).get(METADATA_KEY, {})
            for name in WHEN_AND_WHERE:
                record.pop(name, None)
    return cells
