"""Training a small score network on a toy distribution: a dozen lines, for the toy chapters.

Images are trained by `ncsn_core.training`, which saves, resumes and picks devices; this does none
of it.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ncsn_core.errors import NonFiniteLossError
from ncsn_core.networks.mlp import Ensemble


def fit(
    network: nn.Module,
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    sample: Callable[[int, torch.Generator], Tensor],
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    decay: bool = True,
    seed: int = 0,
    callback: Callable[[int, nn.Module], None] | None = None,
) -> Float[Tensor, "steps members"]:
    """Minimize a score-matching objective by Adam over fresh samples.

    An `Ensemble` is trained as its members would be alone: each sees `batch_size` points of its
    own in every step.

    Args:
        network: the score; trained in place.
        loss: maps (network, x, generator) to one loss per sample.
        sample: draws points of the data, as `Distribution.sample` does.
        steps: number of updates.
        batch_size: fresh points per member and update.
        learning_rate: of Adam, at the start.
        decay: let the rate fall to 0 along a cosine, which averages the last noise out.
        seed: of the data and of what the loss draws.
        callback: called with (step, network) before each update.

    Returns:
        The mean loss of each batch, one column a member (one column for a plain network).

    Raises:
        NonFiniteLossError: at the first loss that is not finite, naming step and member.
    """
    members = network.members if isinstance(network, Ensemble) else 1
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if decay else None
    history = torch.empty(steps, members)
    for step in range(steps):
        if callback is not None:
            callback(step, network)
        x = sample(members * batch_size, generator)
        losses = loss(network, x, generator).reshape(members, -1).mean(1)
        history[step] = losses.detach()
        if not torch.isfinite(losses).all():
            member = int((~torch.isfinite(losses)).nonzero()[0, 0])
            raise NonFiniteLossError(
                f"the loss of network {member + 1} of {members} is {losses[member].item()} in step "
                f"{step + 1}; a smaller learning rate may help"
            )
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return history
