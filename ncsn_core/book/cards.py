"""Model cards: what a checkpoint is, where it came from and how good it was measured to be."""

from ncsn_core.book.show import markdown_table
from ncsn_core.checkpoints import Record
from ncsn_core.networks import count_parameters


def card(record: Record) -> str:
    """A Markdown table of a checkpoint's origin, read from its manifest and nothing else."""
    provenance = record.provenance
    config = record.config
    rows = {}
    if record.kind == "ncsn":
        parameters = count_parameters(record.score().requires_grad_(True))
        rows["network"] = f"RefineNet, {config['channels']} channels, {parameters:,} parameters"
        rows["noise levels"] = (
            f"{config['levels']}, from {config['sigma_first']:g} to {config['sigma_last']:g}"
        )
        rows["profile"] = f"`{config['profile']}` of preset `{config['preset']}`"
        rows["training"] = (
            f"{record.manifest['step']:,} steps of {config['batch_size']} images; Adam, "
            f"{config['learning_rate']:g}, {config['rate_schedule']}; {_averaging(config)}"
        )
        if len(provenance["plans"]) > 1:
            rows["planned"] = _plan(provenance["plans"])
        if "started_from" in provenance:
            rows["started from"] = _start(provenance["started_from"])
        rows["data"] = f"{config['dataset']}, {provenance['images']:,} training images"
        rows["precision"] = provenance["precision"]
    else:
        parameters = count_parameters(record.classifier().requires_grad_(True))
        kind = {"mnist": "digit classifier", "fashion_mnist": "Fashion-MNIST classifier"}
        rows["network"] = f"{kind[config['dataset']]}, {parameters:,} parameters"
        rows["training"] = (
            f"{config['epochs']} epochs of {config['train_images']:,} images, "
            f"{config['batch_size']} at a time; Adam, {config['learning_rate']:g}, cosine"
        )
        rows["data"] = config["dataset"]
        rows["test accuracy"] = (
            f"{record.metrics['test_accuracy']:.2%} of {record.metrics['test_images']:,}"
        )
    rows["device"] = provenance["device"]
    rows["time"] = _duration(provenance["seconds"])
    rows["seed"] = str(provenance["seed"])
    rows["commit"] = provenance["commit"]
    rows["versions"] = ", ".join(f"{k} {v}" for k, v in provenance["versions"].items())
    rows["data SHA-256"] = f"`{provenance['data_sha256'][:16]}…`"
    rows["weights SHA-256"] = f"`{record.weights_sha256[:16]}…`"
    return markdown_table(["", record.name], [[name, value] for name, value in rows.items()])


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
    rows.append(["images", *[f"{b.metrics['count']:,}" for b in bundles]])
    rows.append(
        ["network evaluations a sample", *[f"{b.metrics['evaluations']:,}" for b in bundles]]
    )
    rows.append(["device", *[b.provenance["device"] for b in bundles]])
    rows.append(["time", *[_duration(b.provenance["seconds"]) for b in bundles]])
    return markdown_table(header, rows)


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
