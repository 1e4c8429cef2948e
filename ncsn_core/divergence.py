"""The trace of a score's Jacobian, ∇·s = Σᵢ ∂sᵢ/∂xᵢ: exact, estimated, and what a gradient forbids.

A score maps a batch to a batch and treats its samples independently, so that one product with the
Jacobian of the batch is a product with every sample's own Jacobian J.  `jacobian_vector` is J v
by forward mode, `vector_jacobian` is Jᵀ v by reverse mode; the rest is built from these two, but
for `antisymmetry`.  Everything but that can be differentiated again, and so trained through.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp, vjp, vmap

from ncsn_core._checks import check_finite, shape_checked
from ncsn_core._types import Batch, Directions, PerSample, Score
from ncsn_core.errors import UnknownNameError

Projection = Literal["gaussian", "rademacher", "sphere"]
TraceMethod = Literal["loop", "vmap", "forward"]
Mode = Literal["forward", "reverse"]

PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
TRACE_METHODS: tuple[TraceMethod, ...] = get_args(TraceMethod)
MEMORY_LIMIT = 4 * 2**30


def projections(
    like: Batch, kind: Projection = "gaussian", generator: torch.Generator | None = None
) -> Batch:
    """Random directions v with E[v vᵀ] = I, one per sample, in the shape of `like`.

    Gaussian: N(0, I).  Rademacher: each coordinate ±1.  Sphere: uniform on the sphere of radius
    √D.  All three make vᵀ J v an unbiased estimate of tr J; a sphere of radius 1 does not.

    Raises:
        UnknownNameError: for another kind.
    """
    if kind not in PROJECTIONS:
        raise UnknownNameError("kind of projection", kind, PROJECTIONS)
    v = torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
    if kind == "rademacher":
        return torch.where(v < 0, -1.0, 1.0).to(v)
    if kind == "sphere":
        flat = v.flatten(1)
        flat = flat * (math.sqrt(flat.shape[1]) / flat.norm(dim=1, keepdim=True))
        return flat.reshape(v.shape)
    return v


def jacobian_vector(score: Score, x: Batch, v: Batch) -> tuple[Batch, Batch]:
    """s(x) and J v of each sample, by forward mode: about the cost of two evaluations."""
    return _jvp(shape_checked(score), x, v)


def vector_jacobian(score: Score, x: Batch, v: Batch) -> tuple[Batch, Batch]:
    """s(x) and Jᵀ v of each sample, by reverse mode: one evaluation and one backward pass."""
    s, pull_back = _vjp(score, x)
    return s, pull_back(v)


def quadratic_form(
    score: Score, x: Batch, v: Batch, mode: Mode = "reverse"
) -> tuple[Batch, PerSample]:
    """s(x) and vᵀ J v of each sample.

    Trained through, `mode="reverse"` is the double backward pass of the authors' code and
    `mode="forward"` one backward pass over a forward one.  The values are the same, and reverse was
    the faster of the two on every network of this book (chapter 5 measures it).

    Do not train a network that calls torch's own batch, instance or layer normalization in forward
    mode: the value is right, but the gradient of it is not (pytorch issue 196699).
    """
    s, product = _product_in(mode)(score, x, v)
    return s, (v * product).flatten(1).sum(1)


def _product_in(mode: str) -> Callable[[Score, Batch, Batch], tuple[Batch, Batch]]:
    """`jacobian_vector` or `vector_jacobian`, by the mode of differentiation."""
    if mode not in get_args(Mode):
        raise UnknownNameError("mode of differentiation", mode, get_args(Mode))
    return jacobian_vector if mode == "forward" else vector_jacobian


def exact_divergence(
    score: Score,
    x: Batch,
    method: TraceMethod = "vmap",
    *,
    chunk: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> PerSample:
    """tr J of each sample, exactly, one product with the Jacobian for each of the D dimensions.

    Args:
        score: maps a batch to a batch of the same shape, sample by sample.
        x: where.
        method: "loop", D backward passes one after another; "vmap", the same at once;
            "forward", D forward-mode products at once.
        chunk: at most so many dimensions at once in the last two; all of them when None.
        memory_limit: bytes that the products held at once may take.

    Raises:
        ValueError: for a point that is not finite, or a score that changes the shape.
        UnknownNameError: for another method.
        MemoryError: when the products need more than `memory_limit`; the message says how much.
    """
    dimension = math.prod(x.shape[1:])
    _check_products(x, method, 1 if method == "loop" else chunk or dimension, memory_limit)

    def diagonal(i: Tensor, product: Tensor) -> Tensor:
        return (_basis(i, x) * product).flatten(1).sum(1)

    indices = torch.arange(dimension, device=x.device)
    if method == "forward":
        checked = shape_checked(score)

        def pushed(i: Tensor) -> Tensor:
            return diagonal(i, _jvp(checked, x, _basis(i, x))[1])

        return vmap(pushed, chunk_size=chunk)(indices).sum(0)
    _, pull_back = _vjp(score, x)
    if method == "vmap":
        pull = vmap(lambda i: diagonal(i, pull_back(_basis(i, x))), chunk_size=chunk)
        return pull(indices).sum(0)
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for i in indices:
        total = total + diagonal(i, pull_back(_basis(i, x)))
    return total


def _check_products(x: Tensor, method: str, at_once: int, memory_limit: int) -> None:
    """What `exact_divergence` raises before it computes anything."""
    if method not in TRACE_METHODS:
        raise UnknownNameError("way to compute a trace", method, TRACE_METHODS)
    check_finite(x)
    dimension = math.prod(x.shape[1:])
    at_once = min(at_once, dimension)
    needed = at_once * x.numel() * x.element_size()
    if needed > memory_limit:
        raise MemoryError(
            f"{at_once:,} Jacobian products of {len(x):,} samples in {dimension:,} dimensions hold "
            f"{needed / 2**30:.1f} GiB at once, more than the limit of "
            f"{memory_limit / 2**30:.1f} GiB. Set chunk, take fewer samples, or estimate the trace "
            f"with hutchinson_divergence"
        )


def hutchinson_divergence(
    score: Score,
    x: Batch,
    *,
    count: int = 1,
    kind: Projection = "gaussian",
    mode: Mode = "reverse",
    v: Directions | None = None,
    generator: torch.Generator | None = None,
) -> PerSample:
    """An unbiased estimate of tr J, the mean of vᵀ J v over random v (Hutchinson 1990).

    Args:
        score: maps a batch to a batch of the same shape, sample by sample.
        x: where.
        count: number of directions; the variance falls like 1/count.
        kind: their law, see `projections`.  Rademacher has the smallest variance of the three
            for a J with a dominant diagonal, and none at all for a diagonal J.
        mode: see `quadratic_form`.
        v: the directions, in place of drawing them.
        generator: source of the directions, on the device of `x`.

    Raises:
        ValueError: for a count below 1, directions of another shape, a point that is not finite,
            a score that changes the shape.
    """
    drawn = directions(x, count, kind, v, generator)
    return torch.stack([quadratic_form(score, x, w, mode)[1] for w in drawn]).mean(0)


def jacobian(
    score: Score, x: Batch, *, chunk: int | None = None
) -> Float[Tensor, "batch dimension dimension"]:
    """J of each sample, row i holding the derivatives of sᵢ; for small D only.

    Args:
        score: maps a batch to a batch of the same shape, sample by sample.
        x: the batch.
        chunk: rows at once, which bounds the memory; None: all D.
    """
    check_finite(x)
    _, pull_back = _vjp(score, x)
    indices = torch.arange(math.prod(x.shape[1:]), device=x.device)
    rows = vmap(lambda i: pull_back(_basis(i, x)).flatten(1), chunk_size=chunk)(indices)
    return rows.transpose(0, 1)


def antisymmetry(
    score: Score,
    x: Batch,
    *,
    count: int = 1,
    v: Directions | None = None,
    generator: torch.Generator | None = None,
) -> PerSample:
    """The antisymmetric share of J, ‖(J − Jᵀ)/2‖² / ‖J‖² (Frobenius), of each sample.

    The Jacobian of a gradient field is symmetric, so that 0 is the share of a true score and ½
    that of a random matrix.  Both norms are estimated with the same v: E‖Mv‖² = ‖M‖².

    Args and raises as for `hutchinson_divergence`.
    """
    drawn = directions(x, count, "gaussian", v, generator)
    odd, whole = torch.zeros(len(x)).to(x), torch.zeros(len(x)).to(x)
    # Twice in reverse mode: forward mode through a RefineNet loads torch's compiler, for seconds.
    where = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        s = shape_checked(score)(where)
    for w in drawn:
        along = w.clone().requires_grad_()
        with torch.enable_grad():
            (left,) = torch.autograd.grad(s, where, along, create_graph=True)
        (right,) = torch.autograd.grad(left, along, w, retain_graph=True)  # of Jᵀ, transposed
        left = left.detach()
        odd = odd + (right - left).flatten(1).square().sum(1) / 4
        whole = whole + (right.flatten(1).square().sum(1) + left.flatten(1).square().sum(1)) / 2
    return odd / whole


def _vjp(score: Score, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """s(x), and the function v → Jᵀ v."""
    s, pull_back, *_ = vjp(shape_checked(score), x)
    return s, lambda v: pull_back(v)[0]


def _jvp(function: Score, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():  # torch's forward mode loads TorchScript, which is deprecated
        warnings.filterwarnings("ignore", ".*torch.jit", FutureWarning)
        # forward mode refuses an expanded x, whose samples share their memory
        value, product, *_ = jvp(function, (x.contiguous(),), (v,))
    return value, product


def _basis(i: Tensor, x: Batch) -> Batch:
    """The i-th coordinate direction, for every sample."""
    direction = torch.nn.functional.one_hot(i, math.prod(x.shape[1:])).to(x)
    return direction.reshape(x.shape[1:]).expand_as(x)


def directions(
    x: Tensor,
    count: int,
    kind: Projection,
    v: Tensor | None,
    generator: torch.Generator | None,
) -> Iterable[Tensor]:
    """The given directions, or `count` new ones, after a check of the points and of both."""
    check_finite(x)
    if v is not None and v.shape[1:] != x.shape:
        raise ValueError(
            f"directions are [count, *{tuple(x.shape)}], one for each projection; got "
            f"{tuple(v.shape)}"
        )
    number = count if v is None else len(v)
    if number < 1:
        raise ValueError(f"an estimate needs at least one projection; got {number}")
    return (projections(x, kind, generator) for _ in range(count)) if v is None else v
