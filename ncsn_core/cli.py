"""The command line `ncsn`, also `python -m ncsn_core`: train, sample, evaluate.

Every command imports what it needs: torch takes seconds, and help and mistakes need none.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ncsn_core
from ncsn_core.distributed import close, global_rank
from ncsn_core.errors import NCSNError

if TYPE_CHECKING:
    import torch

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(ncsn_core.__version__, prog_name="ncsn")
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
    Bring a checkpoint of the authors' code:
        ncsn convert checkpoint.pth runs/official --preset cifar10
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
    type=click.Choice(["auto", "bf16-mixed", "16-mixed", "32-true"]),
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
    from ncsn_core.config import load_config

    config = load_config(preset, profile, seed=seed, **parse_settings(settings))
    folder = folder or Path("runs") / f"{preset}-{profile}-{seed}"
    from ncsn_core.training import train as train_network

    record = train_network(
        config, folder, device=device, precision=precision, download=download, minutes=minutes
    )
    if global_rank():
        return
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
@click.option(
    "--dataset",
    default="mnist",
    show_default=True,
    type=click.Choice(["mnist", "fashion_mnist"]),
    help="What it learns to tell apart.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where it goes.  [default: runs/digit_classifier or runs/fashion_classifier]",
)
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--download", is_flag=True, help="Fetch a data set that is not on this machine.")
@device_option
def train_classifier_command(
    dataset: str, folder: Path | None, epochs: int, seed: int, download: bool, device: str
) -> None:
    """Train a classifier whose features `ncsn evaluate` compares digits or garments in."""
    from ncsn_core.devices import pick_device
    from ncsn_core.metrics.classifier import train_classifier
    from ncsn_core.metrics.features import CLASSIFIERS

    folder = folder or Path("runs") / CLASSIFIERS[dataset]
    record = train_classifier(
        folder,
        dataset=dataset,
        epochs=epochs,
        seed=seed,
        device=str(pick_device(device)),
        download=download,
    )
    click.echo(f"test accuracy {record.metrics['test_accuracy']:.2%}, kept in {folder}")


@cli.command()
@click.argument("checkpoint", default="mnist")
@click.option("--count", default=25, show_default=True, type=click.IntRange(min=1))
@click.option("--steps", default=100, show_default=True, help="Steps per level, Algorithm 1's T.")
@click.option("--epsilon", default=2e-5, show_default=True, help="Algorithm 1's ε.")
@click.option(
    "--denoise/--no-denoise", default=False, show_default=True, help="Finish with x + σ² s(x, σ)."
)
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

    import ncsn_core.generation as generation
    from ncsn_core.data.datasets import to_bytes
    from ncsn_core.devices import pick_device, preferred_autocast
    from ncsn_core.pretrained import load

    target = pick_device(device)
    score = load(checkpoint).score(target, autocast=preferred_autocast(target))
    samples = generation.sample(
        score,
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
@click.option(
    "--count", type=click.IntRange(min=4), help="How many samples.  [default: the profile's]"
)
@click.option("--epsilon", default=2e-5, show_default=True, help="Algorithm 1's ε.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where samples are kept as they are drawn.  [default: a folder of that name in runs/]",
)
@click.option(
    "--inception-weights",
    type=click.Path(path_type=Path),
    help="File with Inception's weights, for color.  [default: PyTorch's cache]",
)
@click.option(
    "--download", is_flag=True, help="Fetch data, or Inception's weights, that are not here."
)
@device_option
def evaluate(
    checkpoint: str,
    profile: str,
    count: int | None,
    epsilon: float,
    seed: int,
    folder: Path | None,
    inception_weights: Path | None,
    download: bool,
    device: str,
) -> None:
    """FID and KID of CHECKPOINT's samples, beside those of held-out images and of noise.

    Held-out images are the floor that a perfect sampler reaches.  Digits and garments are compared
    in the features of this book's classifiers, and only color images in Inception's, with the
    Inception score besides: numbers of different features do not compare.  Nor do FIDs of different
    counts, which is why there are two.

    The same command again continues an interrupted one.
    """
    import torch

    import ncsn_core.generation as generation
    from ncsn_core.config import load_evaluation_budget
    from ncsn_core.data.datasets import load_images
    from ncsn_core.devices import pick_device, worth_compiling
    from ncsn_core.metrics.features import load_extractor
    from ncsn_core.metrics.images import measure
    from ncsn_core.pretrained import load

    model = load(checkpoint)
    budget = load_evaluation_budget(profile)
    target = pick_device(device)
    count = count or budget.samples
    calls = -(-count // budget.batch_size) * len(model.sigmas) * budget.steps_per_level
    compile = worth_compiling(target, calls)
    origin = f"{model.name}-{model.weights_sha256[:8]}"
    folder = folder or Path("runs") / f"samples-{origin}-{profile}-{epsilon:g}-{seed}"
    score = model.score(target, autocast=_autocast_of(folder, target), compile=compile)
    name, size = model.config["dataset"], model.config["image_size"]
    if not global_rank():  # before the samples, so that what is missing is missed at once
        extractor = load_extractor(name, target, weights=inception_weights, download=download)
        reference = load_images(name, download=download, size=size)
        if profile == "smoke":
            reference = reference[:2000]
        held_out = load_images(name, "test", download=download, size=size)

    samples = generation.sample(
        score,
        count,
        seed=seed,
        batch_size=budget.batch_size,
        epsilon=epsilon,
        steps_per_level=budget.steps_per_level,
        folder=folder,
    )
    if global_rank():
        return
    noise = torch.rand(samples.shape, generator=torch.Generator().manual_seed(seed))
    sets = {"held-out images": held_out, "samples": samples, "uniform noise": noise}
    measured = measure(
        sets,
        reference,
        extractor,
        (count // 2, count),
        subset_size=min(100, count // 2),
        seed=seed,
    )
    click.echo(f"{count:,} samples in {folder}")
    click.echo(f"compared with {len(reference):,} training images, features of {extractor.name}")
    for n, row in measured.items():
        click.echo(f"{n:,} images each         FID           KID ± over subsets")
        for label, found in row.items():
            line = f"  {label:15} {found.fid:12.2f}  {found.kid:12.4g} ± {found.kid_std:.2g}"
            if found.inception_score is not None:
                line += f"  Inception score {found.inception_score:.2f}"
                line += f" ± {found.inception_score_std:.2f}"
            click.echo(line)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path, file_okay=False))
@click.option("--half", is_flag=True, help="Keep the weights in float16, at half the size.")
@click.option("--hub", is_flag=True, help="Add a README.md as model hubs read it.")
@click.option("--license", help="For --hub, such as mit.  [default: mit of ours, else unknown]")
@click.option("--onnx", is_flag=True, help="Write the score as one ONNX file, and nothing else.")
def export(
    run: Path, destination: Path, half: bool, hub: bool, license: str | None, onnx: bool
) -> None:
    """Copy a RUN to DESTINATION as it is shipped: the averaged weights, without training state.

    RUN is a folder or a shipped name, DESTINATION a folder.

    \b
    For a model hub, and for programs without PyTorch:
        ncsn export runs/mnist-cpu-0 to_upload --hub --license mit
        ncsn export mnist web --onnx
    How the network of the book came to where it is:
        ncsn export runs/mnist ncsn_core/models/mnist --half
    """
    import ncsn_core.checkpoints as checkpoints
    from ncsn_core.files import write_atomically
    from ncsn_core.hub import CARD, hub_card
    from ncsn_core.onnx import export_onnx
    from ncsn_core.pretrained import load, model

    here = (run / checkpoints.MANIFEST).is_file()  # before a shipped one of that name
    record = model(checkpoints.load(run)) if here else load(run)
    if onnx:
        if half or hub:
            raise NCSNError("--onnx writes float32 and one file; export once more for the others")
        file = export_onnx(record, destination)
        click.echo(f"{record.name}: {file.stat().st_size / 2**20:.1f} MiB in {file}")
        return
    if destination.resolve() == record.folder.resolve():
        raise NCSNError("a run cannot be exported onto itself: it would lose its training state")
    card, page = destination / CARD, hub_card(record, license=license, half=half) if hub else ""
    if hub and card.exists() and card.read_text(encoding="utf-8") != page:
        raise NCSNError(f"{card} is there and may be yours: move it away, and export again")
    exported = checkpoints.export(record, destination, half=half)
    if hub:
        write_atomically(card, page.encode())
    size = sum(f["bytes"] for f in exported.manifest["files"].values())
    click.echo(f"{record.name}: {size / 2**20:.1f} MiB in {destination}")


@cli.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--preset", required=True, help="What it was trained on: mnist, cifar10, celeba.")
@click.option("--image-size", type=int, help="In pixels.  [default: the preset's]")
@click.option("--sigma-max", type=float, help="Largest noise.  [default: the preset's]")
@click.option("--sigma-min", type=float, help="Smallest noise.  [default: the preset's]")
@click.option(
    "--input-range",
    type=float,
    nargs=2,
    metavar="LOW HIGH",
    help="Of the images that the network was given; noise is meant in its units.  [default: 0 1]",
)
@click.option(
    "--rescaled",
    is_flag=True,
    help="The first convolution saw these images as they are, and not 2x − 1: what the authors' "
    "later code does with `rescaled: true`.  The range is then -1 1 unless given.",
)
def convert(
    source: Path,
    destination: Path,
    preset: str,
    image_size: int | None,
    sigma_max: float | None,
    sigma_min: float | None,
    input_range: tuple[float, float] | None,
    rescaled: bool,
) -> None:
    """Make a checkpoint of the authors' public code, SOURCE, one of ours, in DESTINATION.

    The file tells the network's width and its number of noise levels; the preset tells the rest.
    Averaged weights are taken where the file has them.  A safetensors file with their names works.
    Their step of 2e-5 is --epsilon 4e-5 here.

    \b
    For example:
        ncsn convert checkpoint.pth runs/cifar10-authors --preset cifar10
        ncsn sample runs/cifar10-authors --epsilon 4e-5
    """
    from ncsn_core.convert import convert as convert_checkpoint

    record = convert_checkpoint(
        source,
        destination,
        preset,
        image_size=image_size,
        sigma_max=sigma_max,
        sigma_min=sigma_min,
        input_range=input_range,
        rescaled=rescaled,
    )
    channels, levels = record.config["channels"], record.config["levels"]
    click.echo(f"{channels} channels, {levels} noise levels, in {destination}")
    origin, step = record.provenance["converted_from"], record.manifest["step"]
    if "weights" in origin:
        kind = "averaged weights" if origin["averaged"] else "weights"
        click.echo(f"the {kind}, which the file has at {origin['weights']!r}, were taken")
    if step is not None:
        click.echo(f"after {step:,} steps")
    if "input_range" in origin:
        largest, smallest = record.config["sigma_max"], record.config["sigma_min"]
        click.echo(f"noise from {largest:g} to {smallest:g}, of pixels in [0, 1]")


@cli.command()
def models() -> None:
    """List the checkpoints that ship with the package, and verify them."""
    from ncsn_core.pretrained import available, load

    for name in available():
        model = load(name)
        for part in model.manifest["files"]:
            model.tensors(part)
        bundles = sorted(p.parent.name for p in model.folder.glob("bundles/*/manifest.json"))
        size = sum(file["bytes"] for file in model.manifest["files"].values()) / 2**20
        click.echo(f"{name}: {model.kind}, {size:.1f} MiB, verified")
        for bundle in bundles:
            model.bundle(bundle).tensors("results")
            click.echo(f"  results {bundle}, verified")


def _autocast_of(folder: Path, device: "torch.device") -> "torch.dtype | None":
    """The autocast type of the samples in a folder; of new ones, what this hardware prefers."""
    import torch

    import ncsn_core.checkpoints as checkpoints
    from ncsn_core.devices import preferred_autocast

    preferred = preferred_autocast(device)  # which all processes find out together
    if not (folder / checkpoints.MANIFEST).is_file():
        return preferred
    kinds = {str(kind): kind for kind in (torch.bfloat16, torch.float16)}
    return kinds.get(checkpoints.load(folder).config.get("autocast", "None"))


def main() -> None:
    """Run the command line; errors of ours become one line and exit code 1."""
    try:
        code = cli(prog_name="ncsn", standalone_mode=False)
        close()
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        sys.exit(130)
    except (NCSNError, ValueError, OSError, FloatingPointError) as error:
        _say(f"ncsn: {error}")
        sys.exit(1)


def _say(text: str) -> None:
    """Print what went wrong; of several processes, each but the first says which it is."""
    who = f"[process {global_rank()}] " if global_rank() else ""
    click.echo(who + text, err=True)
