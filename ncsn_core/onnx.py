"""A score as an ONNX file, for programs that have no PyTorch: a browser, a phone, another language.

The file needs nothing but itself.  Inputs are `x` [batch, channel, height, width], float32, pixels
around [0, 1], and `sigma` [batch], float32; the output is `score`, like x.  The batch is free.
What else a program has to know, its metadata hold as text: `sigmas`, the noise levels from large to
small, `image_shape` and `config`, all as JSON; `name`; and `weights_sha256`.

At a σ that the network was not trained for, the score is not-a-number: a file raises no error.

The graph is written here, operation by operation, as the paper has them: an exporter takes minutes
for the same.  The package `onnx` spells it: `pip install 'ncsn-core[onnx]'`.
"""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ncsn_core.errors import NCSNError
from ncsn_core.files import write_atomically
from ncsn_core.networks.score import ContinuousScore, EnergyScore, NoiseConditionalScore
from ncsn_core.pretrained import Model

OPSET, IR_VERSION = 18, 8
TOLERANCE = 1e-4  # relative, within which a σ is one of the ladder's: text may have rounded it


def export_onnx(model: Model, folder: Path | str) -> Path:
    """Write the score of an NCSN as `NAME-HASH.onnx`, and return the file's path.

    HASH begins the SHA-256 of the weights.  A file that is there already, and says that it was made
    of them under this configuration, is left as it is.

    Args:
        model: an NCSN, but no energy, whose score is a derivative.
        folder: where the file goes; created when missing.

    Raises:
        NCSNError: when the package `onnx` is missing, or `model` is no NCSN or an energy.
        UnwritableError: when the file cannot be written.
    """
    score = model.score()
    if isinstance(score, EnergyScore):
        raise NCSNError(f"{model.name!r} is an energy: its derivative cannot be written as ONNX")
    metadata = {
        "name": model.name,
        "weights_sha256": model.weights_sha256,
        "sigmas": json.dumps(score.sigmas.tolist()),
        "image_shape": json.dumps(score.image_shape),
        "config": json.dumps(model.config),
    }
    file = Path(folder) / f"{model.name}-{model.weights_sha256[:12]}.onnx"
    if file.is_file() and _holds(file, metadata):
        return file
    if find_spec("onnx") is None:
        raise NCSNError("the package onnx is missing: pip install 'ncsn-core[onnx]'")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, _Graph(score).to_bytes(metadata))
    return file


def _holds(file: Path, metadata: dict[str, str]) -> bool:
    """Whether these words stand in a file, at whose end they are."""
    raw = file.read_bytes()
    return all(value.encode() in raw for value in metadata.values())


class _Graph:
    """The score's operations; a value in it is known by its name."""

    def __init__(self, score: NoiseConditionalScore) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shape = score.image_shape
        continuous = isinstance(score, ContinuousScore)
        s, known = (self.continuous if continuous else self.of_a_ladder)(score)  # type: ignore[arg-type]
        known = self.do("Reshape", known, np.array([-1, 1, 1, 1]))
        self.do("Where", known, s, math.nan, name="score")

    def to_bytes(self, metadata: dict[str, str]) -> bytes:
        """The file."""
        import onnx
        from onnx import helper

        image: list[str | int | None] = ["batch", *self.shape]
        graph = helper.make_graph(
            self.nodes,
            "score",
            [
                helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, image),
                helper.make_tensor_value_info("sigma", onnx.TensorProto.FLOAT, ["batch"]),
            ],
            [helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, image)],
            [onnx.numpy_helper.from_array(a, name) for name, a in self.constants.items()],
        )
        opset = [helper.make_opsetid("", OPSET)]
        file = helper.make_model(graph, opset_imports=opset, producer_name="ncsn_core")
        file.ir_version = IR_VERSION
        helper.set_model_props(file, metadata)
        onnx.checker.check_model(file, full_check=True)
        return bytes(file.SerializeToString())

    def do(self, kind: str, *inputs: Any, outputs: int = 1, name: str = "", **options: Any) -> Any:
        """An operation on named values and constants; the name of what comes out, or a list."""
        from onnx import helper

        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        made = [name or f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, **options))
        return made[0] if outputs == 1 else made

    def constant(self, value: Any) -> str:
        """A number or a tensor; equal numbers and small tensors are kept once."""
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
        elif not isinstance(value, np.ndarray):
            value = np.array(value, np.float32)
        for name, other in self.constants.items():
            same = other.dtype == value.dtype and other.shape == value.shape
            if same and value.size < 8 and np.array_equal(other, value, equal_nan=True):
                return name
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    # --- scores ---------------------------------------------------------------------------------
    # Each gives the score, and whether σ was known, [batch, 1].

    def of_a_ladder(self, score: NoiseConditionalScore) -> tuple[str, str]:
        """At the level whose σ is nearest: its row of 0 and one 1 picks the embeddings."""
        ratio = self.do("Div", self.column(2), score.sigmas[None])
        distance = self.do("Abs", self.do("Sub", ratio, 1.0))
        least = self.do("ReduceMin", distance, np.array([1]))
        rows = self.do("Cast", self.do("Equal", distance, least), to=1)
        if not score.conditional:
            rows = self.do("Add", self.do("Mul", least, 0.0), 1.0)
        known = self.do("Less", least, TOLERANCE)
        return self.network(score.network, "x", rows), known

    def continuous(self, score: ContinuousScore) -> tuple[str, str]:
        """Preconditioned, between the ends of the ladder; two rows are mixed."""
        largest, smallest, last = score.sigmas[0], score.sigmas[-1], len(score.sigmas) - 1
        sigma = self.do("Clip", self.column(2), smallest, largest)
        off = self.do("Abs", self.do("Sub", self.do("Div", self.column(2), sigma), 1.0))
        position = self.do("Log", self.do("Div", sigma, largest))
        position = self.do("Mul", position, last / math.log(smallest / largest))
        off_rows = self.do("Abs", self.do("Sub", position, torch.arange(last + 1.0)[None]))
        rows = self.do("Relu", self.do("Sub", 1.0, off_rows))
        sigma = self.do("Reshape", sigma, np.array([-1, 1, 1, 1]))
        variance = self.do("Add", self.do("Mul", sigma, sigma), score.data_std**2)
        c = self.do("Reciprocal", self.do("Sqrt", variance))
        unit = self.do("Mul", c, self.do("Sub", "x", score.data_mean))
        y = self.do("Div", self.do("Add", unit, 1.0), 2.0)
        f = self.do(
            "Mul", self.do("Div", score.data_std, sigma), self.network(score.network, y, rows)
        )
        return self.do("Mul", c, self.do("Sub", f, unit)), self.do("Less", off, TOLERANCE)

    def column(self, dimensions: int) -> str:
        """σ as [batch, 1, …]."""
        return self.do("Reshape", "sigma", np.array([-1] + [1] * (dimensions - 1)))

    # --- the network, as `ncsn_core.networks.refinenet` has it -----------------------------------

    def network(self, net: Any, x: str, rows: str) -> str:
        """Of images, and of the weights that each has on the rows of the embeddings."""
        self.rows = rows
        h = self.conv(net.begin, self.do("Add", self.do("Mul", x, net.scale), net.shift))
        skips = []
        for i in range(4):
            h = self.residual(net.blocks[2 * i + 1], self.residual(net.blocks[2 * i], h))
            skips.append(h)
        h = self.refine(net.refine[0], [skips[3]])
        h = self.refine(net.refine[1], [skips[2], h])
        h = self.refine(net.refine[2], [skips[1], h])
        h = self.refine(net.refine[3], [skips[0], h], doubled=True)
        return self.conv(net.end, self.norm(net.norm, h))

    def refine(self, block: Any, xs: list[str], doubled: bool = False) -> str:
        hs = [self.unit(unit, x) for unit, x in zip(block.adapt, xs, strict=True)]
        h = hs[0] if block.fuse is None else self.fuse(block.fuse, hs, doubled)
        return self.unit(block.output, self.pool(block.pool, h))

    def residual(self, block: Any, x: str) -> str:
        h = self.conv(block.conv1, self.norm(block.norm1, x))
        h = self.conv(block.conv2, self.norm(block.norm2, h))
        shortcut = x if isinstance(block.shortcut, nn.Identity) else self.conv(block.shortcut, x)
        h = self.do("Add", h, shortcut)
        if isinstance(block.pool, nn.Identity):
            return str(h)
        return str(self.do("AveragePool", h, kernel_shape=[2, 2], strides=[2, 2]))

    def unit(self, unit: Any, x: str) -> str:
        for first in range(0, len(unit.convs), 2):
            h = self.conv(unit.convs[first], self.norm(unit.norms[first], x))
            h = self.conv(unit.convs[first + 1], self.norm(unit.norms[first + 1], h))
            x = self.do("Add", x, h)
        return x

    def fuse(self, fuse: Any, xs: list[str], doubled: bool) -> str:
        layers = zip(xs, fuse.norms, fuse.convs, strict=True)
        hs = [self.conv(conv, self.norm(norm, x)) for x, norm, conv in layers]
        if doubled:  # the second has half the height and width of the first
            twice = np.array([1, 1, 2, 2], np.float32)
            corners = "align_corners"
            how: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": corners}
            hs[1] = self.do("Resize", hs[1], "", twice, **how)
        return str(self.do("Add", *hs))

    def pool(self, pool: Any, x: str) -> str:
        x = path = self.do("Elu", x)
        window: dict[str, Any] = {"kernel_shape": [5, 5], "pads": [2] * 4, "count_include_pad": 1}
        for norm, conv in zip(pool.norms, pool.convs, strict=True):
            path = self.conv(conv, self.do("AveragePool", self.norm(norm, path), **window))
            x = self.do("Add", x, path)
        return x

    def conv(self, conv: Any, x: str) -> str:
        bias = () if conv.bias is None else (conv.bias,)
        (pad, _), (dilation, _) = conv.padding, conv.dilation
        how: dict[str, Any] = {"pads": [pad] * 4, "dilations": [dilation] * 2}
        return str(self.do("Conv", x, conv.weight, *bias, **how))

    def norm(self, norm: Any, x: str) -> str:
        """`instance_norm_plus` by its formula, and the ELU after it."""
        tables = [norm.gamma, norm.beta, *([] if norm.alpha is None else [norm.alpha])]
        rows = self.do("MatMul", self.rows, torch.cat([t.detach() for t in tables], 1))
        rows = self.do("Unsqueeze", rows, np.array([2, 3]))
        split: dict[str, Any] = {"axis": 1, "num_outputs": len(tables)}
        gamma, beta, *alpha = self.do("Split", rows, outputs=len(tables), **split)
        if norm.normalize:
            mean = self.do("ReduceMean", x, np.array([2, 3]))
            x = self.standardized(x, mean, [2, 3])
            if alpha:
                center = self.do("ReduceMean", mean, np.array([1]))
                channels = norm.gamma.shape[1]
                unbiased = channels / (channels - 1)
                brightness = self.standardized(mean, center, [1], unbiased)
                x = self.do("Add", x, self.do("Mul", alpha[0], brightness))
        x = self.do("Add", self.do("Mul", gamma, x), beta)
        return str(self.do("Elu", x) if norm.elu else x)

    def standardized(self, x: str, mean: str, axes: list[int], correction: float = 1.0) -> str:
        """(x − mean) / √(correction · mean of squares + 1e-5)."""
        centered = self.do("Sub", x, mean)
        variance = self.do("ReduceMean", self.do("Mul", centered, centered), np.array(axes))
        variance = self.do("Add", self.do("Mul", variance, correction), 1e-5)
        return str(self.do("Div", centered, self.do("Sqrt", variance)))
