"""The command line `ncsn`, also `python -m ncsn_core`: train, sample, evaluate, and the book."""

import sys
from pathlib import Path
from typing import Any

import click
import torch

from ncsn_core import __version__, checkpoints, data, training
from ncsn_core.classifiers import train_classifier
from ncsn_core.config import load_config, load_evaluation_budget
from ncsn_core.errors import NCSNError
from ncsn_core.evaluation import FrechetDigitDistance
from ncsn_core.generation import generate, to_bytes

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="ncsn")
def cli() -> None:
    """Score-based generative modeling after Song & Ermon (2019).

    \b
    Draw digits from the network that ships with the package:
        ncsn sample mnist --count 25 --out digits.png
    Train your own: a preset names data and network, a profile the budget:
        ncsn train mnist --profile cpu
        ncsn train cifar10 --profile gpu --download
    How good is it?
        ncsn evaluate runs/mnist-cpu-0 --profile cpu
    Build the book, from a checkout:
        ncsn book build
    """


def device_option(command: Any) -> Any:
    """The --device option, which most commands share."""
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."
    )(command)


@cli.command()
@click.argument("preset")
@click.option("--profile", default="smoke", show_default=True, help="smoke, cpu or gpu.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where the checkpoint goes.  [default: runs/PRESET-PROFILE-SEED]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Replace one setting, such as --set steps=20000; may be given several times.",
)
@click.option("--minutes", type=float, help="Stop at the first checkpoint after so many minutes.")
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(training.PRECISIONS),
    help="Of the network; the weights stay in float32.",
)
@click.option("--download", is_flag=True, help="Fetch a data set that is not on this machine.")
@device_option
def train(
    preset: str,
    profile: str,
    seed: int,
    folder: Path | None,
    settings: tuple[str, ...],
    minutes: float | None,
    precision: str,
    download: bool,
    device: str,
) -> None:
    """Train a noise-conditional score network on PRESET.

    The same command again continues an interrupted run, with the losses that it would have had.

    \b
    Presets:  mnist, fashion_mnist, cifar10, celeba
    Profiles: smoke (seconds), cpu (an hour or two), gpu (the paper's own setting)
    """
    config = load_config(preset, profile, seed=seed, **parse_settings(settings))
    folder = folder or Path("runs") / f"{preset}-{profile}-{seed}"
    record = training.train(
        config, folder, device=device, precision=precision, download=download, minutes=minutes
    )
    step = record.manifest["step"]
    click.echo(f"{step:,} of {config.steps:,} steps in {folder}")
    if step < config.steps:
        click.echo("run the same command again to go on")


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """`("steps=20000", "flip=true")` → `{"steps": 20000, "flip": True}`, read as YAML values.

    Raises:
        NCSNError: for a setting without "=".
    """
    import yaml

    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise NCSNError(f"--set takes NAME=VALUE; got {setting!r}")
        try:
            values[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise NCSNError(f"the value of --set {setting!r} cannot be read") from error
    return values


@cli.command("train-classifier")
@click.option("--folder", type=click.Path(path_type=Path), default="runs/digit_classifier")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@device_option
def train_classifier_command(folder: Path, epochs: int, seed: int, device: str) -> None:
    """Train the digit classifier whose features `ncsn evaluate` compares digits in."""
    target = str(training.pick_device(device))
    record = train_classifier(folder, epochs=epochs, seed=seed, device=target)
    click.echo(f"test accuracy {record.metrics['test_accuracy']:.2%}, kept in {folder}")


@cli.command()
@click.argument("checkpoint", default="mnist")
@click.option("--count", default=25, show_default=True, type=click.IntRange(min=1))
@click.option("--steps", default=100, show_default=True, help="Steps per level, Algorithm 1's T.")
@click.option("--epsilon", default=2e-5, show_default=True, help="Algorithm 1's ε.")
@click.option("--denoise/--no-denoise", default=True, show_default=True)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="samples.png",
    show_default=True,
    help="The image to write.",
)
@device_option
def sample(
    checkpoint: str,
    count: int,
    steps: int,
    epsilon: float,
    denoise: bool,
    seed: int,
    out: Path,
    device: str,
) -> None:
    """Draw samples from CHECKPOINT, a shipped name or a run's folder, as one image.

    A sample costs levels × STEPS network evaluations.  For a quick look: --steps 10 --epsilon 1e-4.
    """
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    model = checkpoints.load(checkpoint)
    target = training.pick_device(device)
    score = model.score(target, autocast=preferred_autocast(target))
    samples = generate(
        score,
        image_shape(model),
        count,
        seed=seed,
        epsilon=epsilon,
        steps_per_level=steps,
        denoise=denoise,
    )
    grid = make_grid(to_bytes(samples), nrow=round(count**0.5) or 1, padding=2, pad_value=255)
    to_pil_image(grid).save(out)
    click.echo(f"{count} samples in {out}")


@cli.command()
@click.argument("checkpoint", default="mnist")
@click.option("--profile", default="smoke", show_default=True, help="smoke, cpu or gpu.")
@click.option("--epsilon", default=2e-5, show_default=True, help="Algorithm 1's ε.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@device_option
def evaluate(checkpoint: str, profile: str, epsilon: float, seed: int, device: str) -> None:
    """Fréchet digit distance of CHECKPOINT's samples, beside that of real digits and of noise."""
    model = checkpoints.load(checkpoint)
    budget = load_evaluation_budget(profile)
    target = training.pick_device(device)
    name = model.config["dataset"]
    if name != "mnist":
        raise NCSNError(
            f"the digit distance compares digits; this checkpoint was trained on {name}"
        )
    samples = generate(
        model.score(target, autocast=preferred_autocast(target)),
        image_shape(model),
        budget.samples,
        seed=seed,
        batch_size=budget.batch_size,
        epsilon=epsilon,
        steps_per_level=budget.steps_per_level,
    )
    classifier = checkpoints.load("digit_classifier").classifier(target)
    distance = FrechetDigitDistance(classifier, data.to_unit(data.load_images(name)).to(target))
    held_out = data.to_unit(data.load_images(name, "test")[: budget.samples])
    noise = torch.rand(samples.shape, generator=torch.Generator().manual_seed(seed))
    click.echo(f"Fréchet digit distance, {budget.samples:,} images each, lower is better")
    click.echo(f"  held-out digits {distance(held_out):10.2f}")
    click.echo(f"  samples         {distance(samples.clamp(0, 1)):10.2f}")
    click.echo(f"  uniform noise   {distance(noise):10.2f}")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
def export(run: Path, destination: Path) -> None:
    """Copy a RUN to DESTINATION as it is shipped: the averaged weights, without training state.

    \b
    How the network of the book came to where it is:
        ncsn export runs/mnist ncsn_core/models/mnist
    """
    record = checkpoints.load(run)
    if destination.resolve() == record.folder.resolve():
        raise NCSNError("a run cannot be exported onto itself: it would lose its training state")
    size = sum(
        f["bytes"] for f in checkpoints.export(record, destination).manifest["files"].values()
    )
    click.echo(f"{record.name}: {size / 2**20:.1f} MiB in {destination}")


@cli.command()
def models() -> None:
    """List the checkpoints that ship with the package, and verify them."""
    for name in checkpoints.available():
        model = checkpoints.load(name)
        for part in model.manifest["files"]:
            model.tensors(part)
        bundles = sorted(p.parent.name for p in model.folder.glob("bundles/*/manifest.json"))
        size = sum(file["bytes"] for file in model.manifest["files"].values()) / 2**20
        click.echo(f"{name}: {model.kind}, {size:.1f} MiB, verified")
        for bundle in bundles:
            model.bundle(bundle).tensors("results")
            click.echo(f"  results {bundle}, verified")


def preferred_autocast(device: torch.device) -> torch.dtype | None:
    """The autocast type that training would pick for this hardware."""
    return training.autocast_dtype(training.pick_precision("auto", device))


def image_shape(model: checkpoints.Record) -> tuple[int, int, int]:
    """Channels, height and width of what a checkpoint draws."""
    size = model.config["image_size"]
    return model.config["image_channels"], size, size


def main() -> None:
    """Run the command line; errors of ours become one line and exit code 1."""
    try:
        from ncsn_core.book.cli import book

        cli.add_command(book)
    except ImportError as error:
        missing = error.name
        cli.add_command(click.Command("book", callback=lambda: _no_book(missing)))
    try:
        code = cli(prog_name="ncsn", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except (NCSNError, ValueError, OSError) as error:
        click.echo(f"ncsn: {error}", err=True)
        sys.exit(1)


def _no_book(missing: str | None) -> None:
    raise NCSNError(
        f"the book's commands need the package {missing!r}: pip install 'ncsn-core[book]'"
    )
