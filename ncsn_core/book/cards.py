"""Model cards: what a checkpoint is, where it came from and how good it was measured to be."""

from ncsn_core.book.show import markdown_table
from ncsn_core.checkpoints import Record
from ncsn_core.networks import count_parameters
from ncsn_core.pretrained import Model


def card(*records: Model) -> str:
    """A Markdown table of the origin of one or more checkpoints of a kind, side by side.

    Everything is read from their manifests and nothing else.
    """
    columns = [_facts(record) for record in records]
    names = list(dict.fromkeys(name for facts in columns for name in facts))
    rows = [[name, *[facts.get(name, "") for facts in columns]] for name in names]
    return markdown_table(["", *[record.name for record in records]], rows)


def _facts(record: Model) -> dict[str, str]:
    provenance, config = record.provenance, record.config
    facts = {}
    if record.kind == "ncsn":
        parameters = count_parameters(record.score().requires_grad_(True))
        facts["network"] = (
            f"RefineNet, {config['channels']} channels, {parameters:,} parameters{_variant(config)}"
        )
        facts["noise levels"] = (
            f"{config['levels']}, from {config['sigma_max']:g} to {config['sigma_min']:g}"
        )
        facts["profile"] = f"`{config['profile']}` of preset `{config['preset']}`"
        objective = config.get("objective", "denoising")
        facts["training"] = (
            f"{objective}, {record.manifest['step']:,} steps of {config['batch_size']} images; "
            f"Adam, {config['learning_rate']:g}, {_rate(config)}; {_averaging(config)}"
        )
        if len(provenance["plans"]) > 1:
            facts["planned"] = _plan(provenance["plans"])
        if "started_from" in provenance:
            facts["started from"] = _start(provenance["started_from"])
        size = config["image_size"]
        facts["data"] = (
            f"{config['dataset']}, {provenance['images']:,} training images of {size} × {size}"
        )
        facts["precision"] = _over_time(record, "precision")
    else:
        parameters = count_parameters(record.classifier().requires_grad_(True))
        kind = {"mnist": "digit classifier", "fashion_mnist": "Fashion-MNIST classifier"}
        facts["network"] = f"{kind[config['dataset']]}, {parameters:,} parameters"
        facts["training"] = (
            f"{config['epochs']} epochs of {config['train_images']:,} images, "
            f"{config['batch_size']} at a time; Adam, {config['learning_rate']:g}, cosine"
        )
        facts["data"] = config["dataset"]
        facts["test accuracy"] = (
            f"{record.metrics['test_accuracy']:.2%} of {record.metrics['test_images']:,}"
        )
    facts["device"] = _over_time(record, "device")
    facts["time"] = _duration(provenance["seconds"])
    facts["seed"] = str(provenance["seed"])
    facts["commit"] = _over_time(record, "commit")
    facts["versions"] = _over_time(record, "versions")
    facts["data SHA-256"] = f"`{provenance['data_sha256'][:16]}…`"
    facts["weights SHA-256"] = f"`{record.weights_sha256[:16]}…`"
    if "rounded_from" in record.manifest:
        facts["rounded from"] = f"`{record.manifest['rounded_from'][:16]}…`"
    return facts


def results_card(record: Record, bundles: list[Record]) -> str:
    """A Markdown table of a checkpoint's results bundles: distances with count, floor and ceiling.

    Raises:
        ValueError: without any bundle.
    """
    if not bundles:
        raise ValueError(f"{record.name} has no results bundles yet")
    header = ["Fréchet distance of", *[f"ε = {b.metrics['epsilon']:g}" for b in bundles]]
    digits = "held_out_digits" in bundles[0].metrics["fid"]
    names = {
        "held_out_digits" if digits else "held_out_images": "held-out images (floor)",
        "denoised": "samples, after the final denoising step",
        "samples": "samples",
        "uniform_noise": "uniform noise (start of the chains)",
    }
    rows = [
        [label, *[f"{b.metrics['fid'][key]:,.1f}" for b in bundles]] for key, label in names.items()
    ]
    for name in ("precision", "recall"):
        values = [b.metrics.get("coverage", {}).get("samples", {}).get(name) for b in bundles]
        if any(value is not None for value in values):
            rows.append(
                [f"{name} of the samples", *["" if v is None else f"{v:.2f}" for v in values]]
            )
    rows.append(["images", *[f"{b.metrics['count']:,}" for b in bundles]])
    rows.append(
        ["network evaluations a sample", *[f"{b.metrics['evaluations']:,}" for b in bundles]]
    )
    rows.append(["device", *[b.provenance["device"] for b in bundles]])
    rows.append(["time", *[_duration(b.provenance["seconds"]) for b in bundles]])
    return markdown_table(header, rows)


def _over_time(record: Record, name: str) -> str:
    """What the sessions of a run say under a name, and from which step on where that changed."""
    parts: list[tuple[int, str]] = []
    for session in record.sessions:
        value = session[name]
        text = ", ".join(map(" ".join, value.items())) if isinstance(value, dict) else value
        if not parts or parts[-1][1] != text:
            parts.append((session["from_step"], text))
    first, *others = parts
    return "; ".join([first[1], *(f"from step {step:,}: {text}" for step, text in others)])


def _variant(config: dict) -> str:
    """What sets a network apart from the paper's, to follow a comma."""
    parts = []
    if not config.get("conditional", True):
        parts.append("not told the noise level")
    if config.get("parametrization") == "energy":
        parts.append("the gradient of an energy")
    if config.get("parametrization") == "continuous":
        parts.append("at every noise level between the ends, preconditioned")
    if not config.get("normalize", True):
        parts.append("no normalization")
    elif not config["keep_means"]:
        parts.append("plain instance normalization")
    return "".join(f"; {part}" for part in parts)


def _rate(config: dict) -> str:
    falls = config.get("decay_steps")
    return config["rate_schedule"] + (f", falling in the last {falls:,} steps" if falls else "")


def _averaging(config: dict) -> str:
    if not config["ema_decay"]:
        return "last weights, not averaged"
    return f"moving average of the weights, decay {config['ema_decay']:g}"


def _plan(plans: list[dict]) -> str:
    first, *changes = plans
    text = f"{first['steps']:,} steps"
    for change in changes:
        text += f"; from step {change['from_step']:,} on, {change['steps']:,}"
    return text


def _start(start: dict) -> str:
    return (
        f"the weights `{start['weights_sha256'][:16]}…` of the run {start['name']}, "
        f"{start['step']:,} steps, commit {start['commit']}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
