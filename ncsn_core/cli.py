"""The command line `ncsn`, also `python -m ncsn_core`: train, sample, evaluate.

Every command imports what it needs: torch takes seconds, and help and mistakes need none.
"""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import ncsn_core
from ncsn_core.distributed import close, global_rank
from ncsn_core.errors import NCSNError, NCSNWarning
from ncsn_core.files import is_there

if TYPE_CHECKING:
    import torch

    from ncsn_core.data import OwnImages
    from ncsn_core.metrics.images import Distances
    from ncsn_core.pretrained import Model

FEWEST = 100  # images that a distance is computed of

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(ncsn_core.__version__, prog_name="ncsn")
def cli() -> None:
    """Score-based generative modeling after Song & Ermon (2019).

    \b
    Draw digits from the network that ships with the package:
        ncsn sample mnist --count 25 --out digits.png
    Give them the lower halves of others' upper halves:
        ncsn inpaint mnist mnist --mask half --out halves.png
    Train your own: a preset names data and network, a profile the budget:
        ncsn train mnist --profile cpu
        ncsn train cifar10 --profile gpu --download
        ncsn train my/pictures --size 32 --profile cpu
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


def compile_option(command: Any) -> Any:
    """The --compile option, of what calls a network long enough."""
    return click.option(
        "--compile/--no-compile",
        "compile",
        default=None,
        help="Compile the normalizations.  [default: where it works and repays itself]",
    )(command)


def sampler_options(command: Any) -> Any:
    """The options that say how chains go, of `sample` and `inpaint`; see `_chosen`."""
    for option in reversed(
        [
            click.option(
                "--evaluations",
                type=click.IntRange(min=1),
                help="Network evaluations of a sample, from which the sampler's numbers follow; "
                "at most so many.  [default: 100, or two a level]",
            ),
            click.option("--steps", type=int, help="Algorithm 1's T.  [default for it: 100]"),
            click.option("--epsilon", type=float, help="Its ε.  [default for it: 2e-5]"),
            click.option(
                "--denoise/--no-denoise", default=None, help="Whether it ends with x + σ² s(x, σ)."
            ),
            click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0)),
            click.option(
                "--out",
                type=click.Path(path_type=Path),
                default="samples.png",
                show_default=True,
                help="A grid (.png), a folder of PNGs (no ending), bytes in the order count, "
                "height, width, channel (.npz, .npy), or floats (.pt).",
            ),
        ]
    ):
        command = option(command)
    return command


def features_options(command: Any) -> Any:
    """The options of commands that compare images in the features of a network."""
    for option in (
        click.option(
            "--download",
            is_flag=True,
            help="Fetch data, or Inception's weights, that are not here.",
        ),
        click.option(
            "--inception-weights",
            type=click.Path(path_type=Path),
            help="File with Inception's weights, for color.  [default: PyTorch's cache]",
        ),
        click.option(
            "--features",
            type=click.Choice(["mnist", "fashion_mnist", "inception"]),
            help="Compare in the features of this network.  [default: the data set's]",
        ),
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("preset")
@click.option("--profile", default="smoke", show_default=True, help="smoke, cpu or gpu.")
@click.option("--size", type=click.IntRange(min=1), help="Images of so many pixels a side.")
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
@click.option(
    "--start-from",
    metavar="RUN",
    help="Begin a new run with the weights of this one, or of a shipped network.",
)
@click.option("--download", is_flag=True, help="Fetch a data set that is not on this machine.")
@compile_option
@device_option
def train(
    preset: str,
    profile: str,
    size: int | None,
    seed: int,
    folder: Path | None,
    settings: tuple[str, ...],
    minutes: float | None,
    precision: str,
    start_from: str | None,
    download: bool,
    compile: bool | None,
    device: str,
) -> None:
    """Train a noise-conditional score network on PRESET, or on a folder of images of your own.

    In the place of PRESET, a folder is read with those below it, and so is an .npz or .npy file;
    --size crops the images to a square and scales it.  A tenth of them is held out for evaluation.

    The same command again continues an interrupted run, with the losses that it would have had.

    \b
    Presets:  mnist, fashion_mnist, cifar10, celeba
    Profiles: smoke (seconds), cpu (an hour or two), gpu (the paper's own setting)
    """
    from ncsn_core.config import config_for, load_config, presets

    values = ({"image_size": size} if size else {}) | {"seed": seed} | parse_settings(settings)
    own = _read_own(preset, values) if preset not in presets() and is_there(preset) else None
    config = config_for(own, profile, **values) if own else load_config(preset, profile, **values)
    name = Path(preset).resolve().stem if own else preset
    if own and config.batch_size == len(own.split()[0]) and not global_rank():
        click.echo(f"every batch holds all {config.batch_size:,} of them")
    folder = folder or Path("runs") / f"{name}-{profile}-{seed}"
    from ncsn_core.pretrained import load
    from ncsn_core.training import train as train_network

    record = train_network(
        config,
        folder,
        device=device,
        precision=precision,
        compile=compile,
        download=download,
        minutes=minutes,
        images=own,
        start_from=load(start_from) if start_from else None,
    )
    if global_rank():
        return
    step = record.manifest["step"]
    click.echo(f"{step:,} of {config.steps:,} steps in {folder}")
    if step < config.steps:
        click.echo("run the same command again to go on")


def _read_own(source: str, values: dict[str, Any]) -> "OwnImages":
    """Images of one's own for training, after saying what became of them."""
    from ncsn_core.data import read_images

    found = read_images(
        source, size=values.get("image_size"), channels=values.get("image_channels")
    )
    if not global_rank():
        _say_images(found)
        train, held_out = found.split()
        click.echo(f"{len(train):,} to train on, {len(held_out):,} held out for evaluation")
    return found


def _say_images(found: "OwnImages") -> None:
    """Print what images there are, and what was done to them."""
    count, channels, height, width = found.images.shape
    kind = "gray" if channels == 1 else "RGB"
    click.echo(f"{count:,} {kind} images of {height} × {width} pixels in {found.source}")
    for note in found.notes:
        click.echo(f"  {note}")


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """`("steps=2e4", "flip=true")` → `{"steps": 20000, "flip": True}`, read as YAML values.

    Raises:
        NCSNError: for a setting without "=", or one that has an option of its own.
    """
    import yaml

    from ncsn_core.config import read_yaml

    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise NCSNError(f"--set takes NAME=VALUE; got {setting!r}")
        if name.strip() in ("preset", "profile", "seed"):
            raise NCSNError(f"--set does not take {name.strip()}, which has a place of its own")
        try:
            values[name.strip()] = read_yaml(value)
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
@click.option(
    "--sampler",
    help="annealed_langevin (Algorithm 1), consistent_annealed, probability_flow or "
    "reverse_diffusion.  [default: reverse_diffusion; with --steps, --epsilon or --denoise "
    "annealed_langevin]",
)
@sampler_options
@device_option
def sample(
    checkpoint: str,
    count: int,
    sampler: str | None,
    evaluations: int | None,
    steps: int | None,
    epsilon: float | None,
    denoise: bool | None,
    seed: int,
    out: Path,
    device: str,
) -> None:
    """Draw samples from CHECKPOINT, a shipped name or a run's folder.

    \b
    As the paper does, 1000 network evaluations:
        ncsn sample mnist --sampler annealed_langevin --steps 100
    """
    import ncsn_core.generation as generation
    from ncsn_core.data import check_destination, write_images
    from ncsn_core.devices import pick_device, preferred_autocast
    from ncsn_core.pretrained import load

    check_destination(out)
    target = pick_device(device)
    score = load(checkpoint).score(target, autocast=preferred_autocast(target))
    given = _given(steps_per_level=steps, epsilon=epsilon, denoise=denoise)
    if sampler is None:
        sampler = "annealed_langevin" if given else "reverse_diffusion"
    options = _chosen(sampler, score.sigmas, evaluations, given)
    samples = generation.sample(score, count, seed=seed, sampler=sampler, **options)
    write_images(samples, out)
    _report_runaways(samples, score.sigmas, options)
    click.echo(f"{count} samples in {out}")


@cli.command()
@click.argument("checkpoint")
@click.argument("images")
@click.option(
    "--mask",
    default="half",
    show_default=True,
    help="What is known: half (the upper one), or a picture that is white where it is.",
)
@click.option("--count", default=25, show_default=True, type=click.IntRange(min=1))
@sampler_options
@device_option
def inpaint(
    checkpoint: str,
    images: str,
    mask: str,
    count: int,
    evaluations: int | None,
    steps: int | None,
    epsilon: float | None,
    denoise: bool | None,
    seed: int,
    out: Path,
    device: str,
) -> None:
    """Fill in the unknown part of COUNT of the IMAGES (Algorithm 2) with CHECKPOINT's network.

    IMAGES is a data set, whose test images are taken, or a folder or file of one's own.

    \b
    Lower halves of digits, for the upper halves of test images:
        ncsn inpaint mnist mnist --mask half --count 25 --out halves.png
    """
    import torch

    import ncsn_core.samplers as samplers
    from ncsn_core.data import (
        DATASETS,
        check_destination,
        load_images,
        read_images,
        to_unit,
        write_images,
    )
    from ncsn_core.devices import pick_device, preferred_autocast
    from ncsn_core.pretrained import load
    from ncsn_core.randomness import generator_for

    check_destination(out)
    target = pick_device(device)
    model = load(checkpoint)
    score = model.score(target, autocast=preferred_autocast(target))
    shape = score.image_shape
    given = _given(steps_per_level=steps, epsilon=epsilon, denoise=denoise)
    options = _chosen("inpaint", score.sigmas, evaluations, given)
    known = _known(mask, shape)
    if images in DATASETS:
        clean = load_images(images, "test", size=shape[-1])[:count]
    else:
        own = read_images(images, size=shape[-1], channels=shape[0], fewest=1)
        clean = own.images[:count]
        for note in own.notes:
            _say(f"ncsn: {note}")
    if clean.shape[1:] != shape:
        raise NCSNError(
            f"{images} has images of shape {tuple(clean.shape[1:])}; {model.name} draws {shape}"
        )
    filled = []
    for i, part in enumerate(to_unit(clean).to(target).split(100)):
        generator = generator_for(seed, i, device=target)
        start = torch.rand(part.shape, device=target, generator=generator)
        filled.append(
            samplers.inpaint(
                score,
                start,
                score.sigmas,
                images=part,
                known=known,
                generator=generator,
                **options,
            ).cpu()
        )
    samples = torch.cat(filled)
    write_images(samples, out)
    _report_runaways(samples, score.sigmas, options)
    click.echo(f"{len(samples)} images, filled in where the mask is black, in {out}")


def _known(mask: str, shape: tuple[int, ...]) -> "torch.Tensor":
    """The mask of --mask, True where a pixel is known."""
    import torch
    from PIL import Image, UnidentifiedImageError
    from torchvision.transforms.functional import pil_to_tensor

    known = torch.zeros(shape, dtype=torch.bool)
    if mask == "half":
        known[:, : shape[1] // 2] = True
        return known
    try:
        with Image.open(mask) as picture:
            solid = "A" not in picture.getbands() and "transparency" not in picture.info
            alpha = picture.convert("RGBA").getchannel("A")
            solid = solid or alpha.getextrema() == (255, 255)
            values = pil_to_tensor(picture.convert("L"))
    except (OSError, UnidentifiedImageError) as error:
        raise NCSNError(
            f"--mask is 'half' or a picture, and {mask} cannot be read: {error}"
        ) from error
    if not solid:
        raise NCSNError(
            f"the mask {mask} is transparent: paint white what is known, black the rest"
        )
    if values.shape[1:] == shape[1:] and len(values.unique()) == 1:
        raise NCSNError(
            f"the mask {mask} has one gray level: white (255) is known, black is to be filled in"
        )
    if values.shape[1:] != shape[1:] or not ((values == 0) | (values == 255)).all():
        raise NCSNError(
            f"the mask {mask} has to be {shape[1]} × {shape[2]} pixels of white (255), where a "
            f"pixel is known, and black (0); it is {values.shape[1]} × {values.shape[2]}, in "
            f"{len(values.unique())} gray levels"
        )
    return known | (values == 255)


def _given(**options: Any) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _chosen(
    sampler: str, sigmas: "torch.Tensor", evaluations: int | None, given: dict[str, Any]
) -> dict[str, Any]:
    """A sampler's options: those for a number of evaluations, or those given, or Algorithm 1's."""
    import ncsn_core.generation as generation

    if evaluations and not given.keys() <= {"denoise"}:
        raise NCSNError("--evaluations chooses --steps and --epsilon: give one or the other")
    by_hand = sampler == "annealed_langevin" or given.keys() - {"denoise"}
    if by_hand and not evaluations:
        return given
    wanted = evaluations or max(100, 2 * len(sigmas))
    return generation.options_for(sampler, sigmas, wanted) | given


def _report_runaways(
    samples: "torch.Tensor", sigmas: "torch.Tensor", options: dict[str, Any]
) -> None:
    """A line on stderr when chains ran away, with the reason where it is known."""
    import ncsn_core.generation as generation

    away, epsilon = generation.runaways(samples), options.get("epsilon", 0.0)
    if not away:
        return
    limit = 4 * sigmas[-1].item() ** 2
    reason = "A smaller --epsilon, more --steps or a longer training may help"
    if epsilon > limit:
        reason = f"ε = {epsilon:g} is above 4 σ_L² = {limit:.3g}, where each step overshoots"
    _say(f"ncsn: {away} of {len(samples)} samples ran away, to pixels far outside [0, 1]. {reason}")


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
    "--images",
    help="Folder or file of the images it was trained on.  [default: where they were then]",
)
@compile_option
@features_options
@device_option
def evaluate(
    checkpoint: str,
    profile: str,
    count: int | None,
    epsilon: float,
    seed: int,
    folder: Path | None,
    images: str | None,
    features: str | None,
    inception_weights: Path | None,
    download: bool,
    compile: bool | None,
    device: str,
) -> None:
    """FID and KID of CHECKPOINT's samples, beside those of held-out images and of noise.

    Held-out images are the floor that a perfect sampler reaches.  Digits and garments are compared
    in the features of this book's classifiers, and only color images in Inception's, with the
    Inception score besides: numbers of different features do not compare.  Nor do FIDs of different
    counts, which is why there are two.  A network of your own images is compared with those that
    its training did not hold out, in Inception's features unless --features says otherwise.

    The same command again continues an interrupted one.
    """
    import torch

    import ncsn_core.generation as generation
    from ncsn_core.config import load_evaluation_budget
    from ncsn_core.data.datasets import to_bytes
    from ncsn_core.devices import compilation, pick_device
    from ncsn_core.metrics.features import PARTS, Inception, load_extractor
    from ncsn_core.metrics.images import measure
    from ncsn_core.pretrained import load

    model = load(checkpoint)
    budget = load_evaluation_budget(profile)
    target = pick_device(device)
    count = count or budget.samples
    calls = -(-count // budget.batch_size) * len(model.sigmas) * budget.steps_per_level
    compile = compilation(compile, target, calls)
    origin = f"{model.name}-{model.weights_sha256[:8]}"
    folder = folder or Path("runs") / f"samples-{origin}-{profile}-{epsilon:g}-{seed}"
    score = model.score(target, autocast=_autocast_of(folder, target), compile=compile)
    if not global_rank():  # before the samples, so that what is missing is missed at once
        name = _features_for(model.config["dataset"], features)
        extractor = load_extractor(name, target, weights=inception_weights, download=download)
        reference, held_out = _real_images(model, images, download)
        if profile == "smoke":
            reference = reference[:2000]
        if len(held_out) < count:
            click.echo(
                f"the floor is that of all {len(held_out):,} held-out images: that of {count:,} "
                f"would be lower"
            )
        if isinstance(extractor.network, Inception) and count // 2 < PARTS:
            click.echo(f"no Inception score of fewer than {PARTS} images")

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
    _report_runaways(samples, score.sigmas, {"epsilon": epsilon})
    noise = torch.rand(samples.shape, generator=torch.Generator().manual_seed(seed))
    seen = to_bytes(samples.nan_to_num())
    sets = {"held-out images": held_out, "samples": seen, "uniform noise": noise}
    measured = measure(
        sets,
        reference,
        extractor,
        (count // 2, count),
        subset_size=min(100, count // 2, len(held_out)),
        seed=seed,
        smaller=("held-out images",),
    )
    click.echo(f"{count:,} samples in {folder}")
    click.echo(f"compared with {len(reference):,} training images, features of {extractor.name}")
    _say_distances(measured)


@cli.command()
@click.argument("source")
@click.option(
    "--with",
    "dataset",
    default="mnist",
    show_default=True,
    help="What with: a data set, or a folder or file of real images.",
)
@click.option(
    "--count", type=click.IntRange(min=1), help="How many of each.  [default: all there are]"
)
@click.option("--size", type=click.IntRange(min=1), help="Pixels a side.  [default: as they are]")
@features_options
@device_option
def compare(
    source: str,
    dataset: str,
    size: int | None,
    count: int | None,
    features: str | None,
    inception_weights: Path | None,
    download: bool,
    device: str,
) -> None:
    """FID and KID of given images, SOURCE, next to those of held-out real ones, the floor.

    SOURCE is a folder of single images, or an .npz, .npy or .pt file, and so may be what it is
    compared with: a tenth of that is then held out.  SOURCE is cropped and scaled to the size of
    the real images.  Numbers of other counts or other features do not compare.

    \b
    For example:
        ncsn compare my/digits --with mnist
    """
    import torch

    from ncsn_core.data import load_images, read_images
    from ncsn_core.devices import pick_device
    from ncsn_core.metrics.features import load_extractor
    from ncsn_core.metrics.images import measure

    reference = load_images(dataset, download=download, size=size)
    held_out = load_images(dataset, "test", download=download, size=size)
    found = read_images(source, size=reference.shape[-1], channels=reference.shape[1])
    _say_images(found)
    most = min(len(found.images), len(held_out))
    count = min(count or most, most)
    if count < FEWEST:
        raise NCSNError(
            f"{count} images say little about a distance: give {FEWEST} or more; there are "
            f"{len(found.images):,} in {source}, and {len(held_out):,} held-out ones of {dataset}"
        )
    extractor = load_extractor(
        _features_for(dataset, features),
        pick_device(device),
        weights=inception_weights,
        download=download,
    )
    # Files are in the order of their names, and fewer than all must not be those of one kind.
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    sets = {"held-out images": held_out, "given images": found.images[order]}
    click.echo(f"compared with {len(reference):,} images, features of {extractor.name}")
    _say_distances(
        measure(sets, reference, extractor, (count // 2, count), subset_size=FEWEST // 2)
    )


def _features_for(dataset: str, features: str | None) -> str:
    """Whose features: as asked for, those of a data set, or Inception's for other images."""
    from ncsn_core.data import DATASETS

    return features or (dataset if dataset in DATASETS else "inception")


def _real_images(
    model: "Model", source: str | None, download: bool
) -> "tuple[torch.Tensor, torch.Tensor]":
    """What a network was trained on, and what was held out."""
    from ncsn_core.data import DATASETS, load_images, read_images
    from ncsn_core.provenance import tensor_sha256

    name, size = model.config["dataset"], model.config["image_size"]
    if source is None and name in DATASETS:
        return (
            load_images(name, download=download, size=size),
            load_images(name, "test", download=download, size=size),
        )
    place = source or name
    if not is_there(place):
        raise NCSNError(
            f"the images of {model.name!r}, {place}, are not here: name them by --images"
        )
    found = read_images(place, size=size, channels=model.config["image_channels"])
    train, held_out = found.split()
    trained_on = train[: model.config.get("train_images")]
    if name not in DATASETS and tensor_sha256(trained_on) != model.provenance.get("data_sha256"):
        raise NCSNError(
            f"{place} holds other images than {model.name!r} was trained on, so that its held-out "
            f"ones may be among these: name the same ones by --images"
        )
    return train, held_out


def _say_distances(measured: "dict[int, dict[str, Distances]]") -> None:
    """Print a table of distances for each count."""
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


def _show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning of ours in one line, without the place in the code; others as ever."""
    if issubclass(category, NCSNWarning):
        _say(f"ncsn: {message}")
    else:
        _show_others(message, category, *where, **more)


_show_others = warnings.showwarning


def main() -> None:
    """Run the command line; errors of ours become one line and exit code 1."""
    warnings.showwarning = _show
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
