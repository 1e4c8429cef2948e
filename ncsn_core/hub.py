"""A page for a model hub: a README whose front matter hubs read, made from a record alone."""

from typing import Any

import yaml

from ncsn_core.checkpoints import MANIFEST, Record, load
from ncsn_core.data import DATASETS
from ncsn_core.pretrained import MODELS, Model

CARD = "README.md"
TOLD = {  # what a configuration says of the training, in words
    "objective": "objective",
    "parametrization": "parametrization",
    "batch_size": "images a step",
    "learning_rate": "learning rate (Adam)",
    "rate_schedule": "schedule of the rate",
    "ema_decay": "decay of the averaged weights",
    "seed": "seed",
}


def hub_card(model: Model, *, license: str | None = None, half: bool = False) -> str:
    """The text of a model card in Markdown.  What the record does not say, it does not say.

    Args:
        model: an NCSN, with the results bundles beside it, if there are any.
        license: as hubs abbreviate it, such as "mit"; None: MIT for what ships with the package,
            and "unknown" for others.
        half: whether the weights beside the card are rounded to float16.

    Raises:
        NCSNError: when `model` is no NCSN.
        CorruptFileError: when its weights are damaged.
    """
    parameters = sum(tensor.numel() for tensor in model.score().state_dict().values())
    shipped = model.folder.resolve().parent == MODELS
    bundles = _bundles(model)
    front = {
        "license": license or ("mit" if shipped else "unknown"),
        "library_name": "ncsn-core",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["score-matching", "langevin-dynamics", "ncsn", "safetensors"],
        "datasets": [name for name in [model.config["dataset"]] if name in DATASETS],
    }
    if bundles:
        front["metrics"] = ["fid"]
    facts = {"parameters": f"{parameters:,}", **_facts(model)}
    if half:
        facts["precision"] = "the weights are kept in float16, rounded from float32"
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {model.name}",
        "",
        "A noise-conditional score network ([Song & Ermon, NeurIPS 2019]"
        "(https://arxiv.org/abs/1907.05600)): the gradient of the log-density of images with "
        "noise on them, from which annealed Langevin dynamics draws new ones.",
        "",
        "```python",
        "import ncsn_core as nc",
        "",
        'images = nc.sample(nc.load("FOLDER").score(), 16)  # the folder of this file',
        "```",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        *(line for bundle in bundles for line in _results(bundle)),
    ]
    return "\n".join(lines) + "\n"


def _facts(model: Model) -> dict[str, Any]:
    """What the manifest says of network and training."""
    config, origin = model.config, model.provenance
    size, step = config["image_size"], model.manifest.get("step")
    facts: dict[str, Any] = {
        "network": f"RefineNet, {config['channels']} channels",
        "images": f"{config['image_channels']} × {size} × {size}, pixels in [0, 1]",
        "noise levels": f"{config['levels']}, from {config['sigma_max']:g} "
        f"to {config['sigma_min']:g}",
    }
    if "images" in origin:
        facts["training images"] = f"{origin['images']:,}"
    if step is not None:
        facts["training steps"] = f"{step:,}"
    facts |= {words: config[name] for name, words in TOLD.items() if name in config}
    if "converted_from" in origin:
        source = origin["converted_from"]
        facts["converted from"] = f"`{source['file']}`, SHA-256 `{source['sha256']}`"
    devices = [session["device"] for session in model.sessions if "device" in session]
    if devices:
        facts["trained on"] = ", then ".join(dict.fromkeys(devices))
    facts["weights, SHA-256"] = f"`{model.weights_sha256}`"
    return facts


def _bundles(model: Model) -> list[Record]:
    """The distances that were measured with these weights."""
    found = map(load, sorted(p.parent for p in model.folder.glob(f"bundles/*/{MANIFEST}")))
    return [
        bundle
        for bundle in found
        if model.has_weights(bundle.provenance.get("weights_sha256")) and "fid" in bundle.metrics
    ]


def _results(bundle: Record) -> list[str]:
    """The distances of one bundle, as a table."""
    measured = bundle.metrics
    features = bundle.provenance.get("features_sha256", "")
    rows = [(name.replace("_", " "), value) for name, value in measured["fid"].items()]
    return [
        "",
        f"Fréchet distance of {measured['count']:,} images each to "
        f"{measured['reference_images']:,} training images, ε = {measured['epsilon']:g}, "
        f"{measured['evaluations']:,} network evaluations a sample, in the features of the network "
        f"with SHA-256 `{features[:16]}…`; numbers of other features or counts do not compare.",
        "",
        "| images | distance |",
        "| --- | --- |",
        *(f"| {name} | {value:,.1f} |" for name, value in rows),
    ]
