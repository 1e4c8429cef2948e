"""Figure 1 of Song & Ermon (2019) on MNIST: two losses, without noise and with, of one seed.

The run goes on where it stopped, to the last bit: what a step draws depends on the seed and on its
number.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ncsn_core import checkpoints, data, objectives, provenance
from ncsn_core.checkpoints import Record
from ncsn_core.files import exclusive
from ncsn_core.networks import ResidualAutoencoder
from ncsn_core.randomness import generator_for
from ncsn_core.run import load_state, part_of, state_of

KINDS = ("clean", "noised")


@dataclass(frozen=True)
class Figure1:
    """What one run computes; the settings are those of `notebooks/training/train_figure1.ipynb`."""

    seed: int
    preactivation: bool = False
    steps: int = 3000
    batch_size: int = 32
    width: int = 32
    sigma: float = 0.01
    checkpoint_every: int = 100


def train(config: Figure1, folder: Path) -> Record:
    """Train both networks to their last step, or go on; the record has their losses.

    Raises:
        NCSNError: when another process is training there, or the folder holds something else.
    """
    images = data.load_images("mnist")
    runs = {}
    for kind in KINDS:
        torch.manual_seed(config.seed)
        network = ResidualAutoencoder(1, config.width, preactivation=config.preactivation)
        runs[kind] = network, torch.optim.Adam(network.parameters(), lr=1e-3)
    history = {kind: torch.full((config.steps,), float("nan")) for kind in KINDS}
    with exclusive(folder):
        checkpoints.owned_files(folder)
        step, origin = 0, provenance.describe("cpu") | {"seed": config.seed}
        sessions = [{"from_step": 0} | origin]
        if (folder / checkpoints.MANIFEST).exists():
            record = checkpoints.load(folder)
            step, state = record.manifest["step"], record.tensors("state")
            sessions = [*record.provenance["sessions"], {"from_step": step} | origin]
            for kind in KINDS:
                load_state(*runs[kind], part_of(state, f"{kind}."))
                history[kind][:step] = record.tensors("results")[f"history_{kind}"][:step]
        while step < config.steps:
            generator = generator_for(config.seed, step)
            chosen = torch.randint(len(images), (config.batch_size,), generator=generator)
            x = data.to_unit(images[chosen])
            z = torch.randn(x.shape, generator=generator)
            v = torch.randn(1, *x.shape, generator=generator)
            for kind in KINDS:
                noised = x + config.sigma * z if kind == "noised" else x
                history[kind][step] = update(*runs[kind], noised, v)
            step += 1
            if step % config.checkpoint_every == 0 or step == config.steps:
                record = checkpoints.save(
                    folder,
                    {
                        "results": {f"history_{kind}": history[kind] for kind in KINDS},
                        "state": {
                            f"{kind}.{name}": t
                            for kind in KINDS
                            for name, t in state_of(*runs[kind]).items()
                        },
                    },
                    kind="figure1",
                    config=asdict(config),
                    step=step,
                    provenance={"sessions": sessions},
                )
    return record


def update(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, v: Tensor) -> float:
    """One step on SSM-VR (Equation 3); the loss, and no step where it is not finite."""
    loss = objectives.sliced_score_matching_vr(network, x, v=v).mean()
    if torch.isfinite(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())
