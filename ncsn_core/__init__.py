"""Score-based generative modeling after Song & Ermon (2019), one concept a module.

    import ncsn_core as nc

    model = nc.load("mnist")
    digits = nc.sample(model.score(), 16)

Nothing is imported before it is asked for: neither torch nor the modules of this package.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ncsn_core._lazy import names_of

try:
    __version__ = version("ncsn-core")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0.1.0"

if TYPE_CHECKING:
    from ncsn_core.config import load_config
    from ncsn_core.generation import sample
    from ncsn_core.pretrained import available, load
    from ncsn_core.samplers import annealed_langevin, inpaint, langevin
    from ncsn_core.training import train
else:
    __getattr__, __dir__ = names_of(
        __name__,
        {
            "config": "load_config",
            "generation": "sample",
            "pretrained": "available load",
            "samplers": "annealed_langevin inpaint langevin",
            "training": "train",
        },
        "baselines checkpoints config data devices distributions divergence fitting generation "
        "metrics networks objectives parametrizations pretrained samplers schedules training",
    )

__all__ = [
    "annealed_langevin",
    "available",
    "inpaint",
    "langevin",
    "load",
    "load_config",
    "sample",
    "train",
]
