"""Types that the modules share; the axes in a shape say which sizes have to agree."""

from collections.abc import Callable

from jaxtyping import Float, UInt8
from torch import Tensor

Batch = Float[Tensor, "batch *shape"]
Directions = Float[Tensor, "count batch *shape"]
Points = Float[Tensor, "batch dimension"]
PerSample = Float[Tensor, " batch"]
Ladder = Float[Tensor, " levels"]
Images = UInt8[Tensor, "count channel height width"]

Score = Callable[[Tensor], Tensor]
"""s(x): maps a batch to a batch of the same shape, sample by sample."""

LogDensity = Callable[[Tensor], Tensor]
"""log p(x) of each sample, [batch], up to a constant."""

NoiseConditional = Callable[[Tensor, Tensor], Tensor]
"""s(x, σ): as `Score`, with σ one per sample, [batch]."""
