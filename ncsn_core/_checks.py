"""Checks of tensors that a GPU does not have to stop for.

To look at a number on a GPU is to wait until everything before it has been computed, and meanwhile
the GPU gets no new work.  So a check on the device is noted, and many are looked at together.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Checks = list[tuple[Tensor, Callable[[], Exception]]]

AT_ONCE = ("cpu",)  # kinds of device on which a look costs nothing
MAX_PENDING = 300  # checks that wait for a look: a training step has three

_noted: ContextVar[Checks | None] = ContextVar("noted", default=None)


def require(holds: Tensor, error: Callable[[], Exception]) -> None:
    """Raise `error()` unless `holds`, one truth value.

    At once on a CPU, and wherever nobody has said `later`.  Not at all while a CUDA graph is being
    captured, which can neither be looked at nor repeat the check.
    """
    noted = _noted.get()
    if holds.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if noted is None or holds.device.type in AT_ONCE:
        if not holds:
            raise error()
        return
    noted.append((holds, error))
    if len(noted) >= MAX_PENDING:
        look(noted)


def look(checks: Checks) -> None:
    """Raise the error of the first check that failed; either way none is left."""
    noted = list(checks)
    checks.clear()
    if noted:
        answers = torch.stack([holds for holds, _ in noted]).tolist()
        for answer, (_, error) in zip(answers, noted, strict=True):
            if not answer:
                raise error()


@contextmanager
def later(checks: Checks | None = None) -> Iterator[None]:
    """Let the checks of a block, or of a decorated function, wait for its end.

    An error of the block's own is then the consequence of a check that failed before it, if one
    did.  Inside of another such block they wait for the end of that.

    Args:
        checks: where they go instead, to be looked at by the caller.
    """
    if _noted.get() is not None:
        yield
        return
    noted: Checks = [] if checks is None else checks
    token = _noted.set(noted)
    try:
        yield
    finally:
        _noted.reset(token)
        if checks is None:
            look(noted)


# --- what has to hold of points and scores ------------------------------------------------------


def check_finite(x: Tensor) -> None:
    """Raise ValueError unless a batch is of finite floats, naming the first sample that is not."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"data are a tensor of floats; got {kind}. ncsn_core.data.to_unit makes one of images"
        )

    def error() -> ValueError:
        first = int((~torch.isfinite(x).flatten(1).all(1)).nonzero()[0, 0])
        return ValueError(
            f"sample {first} of the batch holds NaN or infinity: {x[first].tolist()}"[:300]
        )

    require(torch.isfinite(x).all(), error)


DARKEST, BRIGHTEST, STRAYS = -0.25, 1.5, 1e-3
"""Images in [0, 1] that carry noise have no pixel above, and at most this share of them below."""


def check_unit_range(x: Tensor) -> None:
    """Raise ValueError for floats that are plainly no images in [0, 1], saying how to convert."""
    low, high = x.aminmax()

    def error() -> ValueError:
        least, most = float(low), float(high)
        if not (math.isfinite(least) and math.isfinite(most)):
            return ValueError("some pixels are NaN or infinite: leave those images out")
        how = "undo their normalization, x · std + mean, or clip samples with clamp(0, 1)"
        if -1.01 <= least < -0.75 and most <= 1.01:
            how = "from [−1, 1] they get there by (x + 1) / 2"
        elif least >= DARKEST and most > 32:
            how = f"divide by {255 if most <= 256 else 65535}"
        return ValueError(
            f"floats are images in [0, 1], and these reach from {least:.3g} to {most:.3g}: {how}"
        )

    # NaN compares false, and aminmax hands it on.
    require((high <= BRIGHTEST) & ((x < DARKEST).float().mean() <= STRAYS), error)


def image_shape_of(score: object) -> tuple[int, ...] | None:
    """The image that the network of a score takes, [channel, height, width]; None for others."""
    return getattr(getattr(score, "network", None), "image_shape", None)


def check_clean(score: object, x: Tensor) -> None:
    """Raise ValueError unless clean data are finite floats, in [0, 1] for a network of images."""
    check_finite(x)
    shape = image_shape_of(score)
    if shape is None or not x.numel():
        return
    if x.ndim != 4 or x.shape[1] != shape[0]:
        raise ValueError(
            f"this network takes images [count, {', '.join(map(str, shape))}]; got {list(x.shape)}"
        )
    check_unit_range(x)


def check_shape(s: Tensor, x: Tensor) -> None:
    """Raise ValueError unless the score `s` has the shape of the points `x`."""
    if s.shape != x.shape:
        raise ValueError(
            f"a score has the shape of its input, {tuple(x.shape)}; got {tuple(s.shape)}"
        )


def check_per_sample(sigma: Tensor, x: Tensor) -> None:
    """Raise ValueError unless σ is positive and finite, one for each sample of `x`."""
    if sigma.shape != x.shape[:1]:
        raise ValueError(
            f"sigma has one value for each of the {len(x)} samples; got shape {tuple(sigma.shape)}"
        )
    require(
        ((sigma > 0) & (sigma < math.inf)).all(),
        lambda: ValueError(f"sigma must be positive and finite; got {sigma.tolist()}"[:300]),
    )


def shape_checked(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The score, of x or of x and σ, with `check_shape` after each call."""

    def checked(x: Tensor, *sigma: Tensor) -> Tensor:
        s = score(x, *sigma)
        check_shape(s, x)
        return s

    return checked
