"""The command line: what it prints, what it writes, and its exit codes."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scores import without_type_checks

from ncsn_core import cli, data, devices, generation, pretrained, run, training
from ncsn_core.config import load_config, presets, profiles
from ncsn_core.data import datasets
from ncsn_core.metrics import features, images
from ncsn_core.metrics.features import Extractor, Inception

SMALL = {"channels": 2, "steps": 2, "batch_size": 4, "log_every": 1, "checkpoint_every": 1}
TINY = [f"--set={name}={value}" for name, value in (SMALL | {"train_images": 16}).items()]
ONE_STEP = [f"--set={name}={value}" for name, value in (SMALL | {"steps": 1}).items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a network trained for two steps, for all tests of this module."""
    config = load_config("mnist", "smoke", **SMALL, train_images=16)
    folder = tmp_path_factory.mktemp("trained") / "run"
    training.train(config, folder, device="cpu", compile=False, progress=False)
    return folder


@pytest.fixture
def tiny_run(trained, tmp_path):
    """A copy of it, of the test's own."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["sample", "--help"], ["evaluate", "--help"]]
)
def test_help_shows_an_example_or_the_options(ncsn, arguments):
    code, out, _ = ncsn(*arguments)
    assert code == 0
    assert "Usage: ncsn" in out


def test_help_of_train_lists_presets_and_profiles(ncsn):
    _, out, _ = ncsn("train", "--help")
    for name in (*presets(), *profiles()):
        assert name in out


def test_the_choices_are_those_of_the_library():
    choices = {option.name: option.type for option in cli.train.params}
    assert tuple(choices["precision"].choices) == devices.PRECISIONS
    choices = {option.name: option.type for option in cli.train_classifier_command.params}
    assert list(choices["dataset"].choices) == list(features.CLASSIFIERS)


def test_training_writes_a_checkpoint_and_says_where(ncsn, tmp_path, trained):
    folder = tmp_path / "run"
    code, out, err = ncsn("train", "mnist", "--folder", folder, "--device", "cpu", *TINY)
    assert code == 0, err
    assert str(folder) in out
    record = pretrained.load(folder)
    assert record.manifest["step"] == 2
    assert record.config == pretrained.load(trained).config


def test_small_numbers_the_compiler_and_the_start_are_passed_on(
    ncsn, trained, tmp_path, monkeypatch
):
    asked = {}

    def train(config, folder, **options):
        asked.update(options, config=config)
        return pretrained.load(trained)

    monkeypatch.setattr(training, "train", train)
    arguments = ("--set", "learning_rate=1e-4", "--set", "steps=2e3", "--no-compile")
    code, _, err = ncsn("train", "mnist", *arguments, "--start-from", trained)
    assert code == 0, err
    assert (asked["config"].learning_rate, asked["config"].steps) == (1e-4, 2000)
    assert asked["compile"] is False
    assert asked["start_from"].folder == trained
    assert ncsn("train", "mnist", "--compile")[0] == 0
    assert (asked["compile"], asked["start_from"]) == (True, None)


def test_training_again_with_more_steps_goes_on(ncsn, tiny_run):
    more = [s.replace("steps=2", "steps=3") for s in TINY]
    code, out, _ = ncsn("train", "mnist", "--folder", tiny_run, "--device", "cpu", *more)
    assert code == 0
    assert "3 of 3 steps" in out
    plans = pretrained.load(tiny_run).provenance["plans"]
    assert [(plan["from_step"], plan["steps"]) for plan in plans] == [(0, 2), (2, 3)]


def test_a_time_budget_ends_with_how_to_go_on(ncsn, tmp_path):
    arguments = ("train", "mnist", "--folder", tmp_path / "run", "--device", "cpu", *TINY)
    code, out, err = ncsn(*arguments, "--minutes", 0)
    assert code == 0, err
    assert "1 of 2 steps" in out
    assert "run the same command again to go on" in out
    assert pretrained.load(tmp_path / "run").manifest["step"] == 1


def test_sampling_writes_an_image(ncsn, tiny_run, tmp_path):
    from PIL import Image

    out = tmp_path / "grid.png"
    code, _, err = ncsn(
        "sample", tiny_run, "--count", 4, "--steps", 1, "--out", out, "--device", "cpu"
    )
    assert code == 0, err
    with Image.open(out) as image:
        assert (image.mode, image.size) == ("L", (2 * 30 + 2, 2 * 30 + 2))


@pytest.fixture
def few(record, tmp_path, monkeypatch):
    """Sampling answers with two gray images, and says what it was asked for."""
    asked = []
    two = torch.stack([torch.zeros(1, 28, 28), torch.ones(1, 28, 28)]) - 0.001
    two[:, :, 0] = 0.2

    def draw(score, count, **options):
        asked.append(options)
        return two

    monkeypatch.setattr(generation, "sample", draw)
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(
        asked=asked, images=two, command=("sample", record.folder, "--device", "cpu")
    )


def test_samples_go_to_single_files_arrays_and_tensors(ncsn, few):
    """Each with the gray levels 0, 255 and, in the first row, 51; floats as they are."""
    for out in ("singles", "new/deep/s.npz", "s.NPY", "s.pt"):
        code, said, err = ncsn(*few.command, "--out", out)
        assert code == 0, err
        assert f"25 samples in {out}" in said
    pictures = sorted(Path("singles").iterdir())
    assert [path.name for path in pictures] == ["00000.png", "00001.png"]
    read = []
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.mode == "L"
            read.append(np.asarray(picture))
    expected = np.stack(read)[..., None]
    assert sorted(np.unique(expected)) == [0, 51, 255]
    for array in (np.load("new/deep/s.npz")["arr_0"], np.load("s.NPY")):
        assert array.dtype == np.uint8
        assert np.array_equal(array, expected)
    assert torch.equal(torch.load("s.pt"), few.images)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("s.xyz", "ending that is not known"),
        ("s.h5", "ending that is not known"),
        ("file/s.png", "file is no folder"),
        ("folder.png", "is a folder"),
        ("full", "holds something already"),
        ("file", "is a file"),
    ],
)
@pytest.mark.parametrize("command", ["sample", "inpaint"])
def test_a_name_that_cannot_be_written_is_refused_before_the_work(
    ncsn, tmp_path, monkeypatch, out, says, command
):
    monkeypatch.setattr(pretrained, "load", lambda name: pytest.fail("the work has begun"))
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder.png").mkdir()
    Path("full").mkdir()
    (Path("full") / "thesis.tex").touch()
    images = ["mnist"] if command == "inpaint" else []
    code, said, err = ncsn(command, "mnist", *images, "--out", out)
    assert (code, said) == (1, "")
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"sampler": "reverse_diffusion", "corrector_steps": 9}),
        (["--evaluations", 50], {"sampler": "reverse_diffusion", "corrector_steps": 4}),
        (
            ["--evaluations", 51, "--no-denoise"],
            {"sampler": "annealed_langevin", "steps_per_level": 5, "denoise": False},
        ),
        (["--steps", 10, "--epsilon", 1e-4], {"steps_per_level": 10, "epsilon": 1e-4}),
        (["--epsilon", 4e-5], {"sampler": "annealed_langevin", "epsilon": 4e-5}),
        (["--sampler", "annealed_langevin"], {"sampler": "annealed_langevin"}),
        (["--sampler", "reverse_diffusion", "--evaluations", 40], {"corrector_steps": 3}),
        (["--sampler", "probability_flow"], {"method": "heun"}),
    ],
)
def test_options_of_sampling(ncsn, few, arguments, expected):
    """Algorithm 1's own keep their meaning; a number of evaluations, the default, sets them."""
    code, _, err = ncsn(*few.command, *arguments)
    assert code == 0, err
    (asked,) = few.asked
    assert {name: asked.get(name) for name in expected} == expected
    by_hand = {"--steps", "--epsilon", "annealed_langevin"} & set(map(str, arguments))
    assert not by_hand or asked.keys() - {"seed", "sampler"} <= {"steps_per_level", "epsilon"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sampler", "ddim"], "unknown sampler 'ddim'; known: annealed_langevin, consistent"),
        (["--sampler", "probability_flow", "--steps", 3], "option of probability_flow 'steps_per"),
        (["--evaluations", 9, "--steps", 3], "give one or the other"),
        (["--evaluations", 9], "needs at least 10 evaluations for 10 noise levels; got 9"),
        (["--device", "cuda:99"], "'cuda:99' is not here"),
    ],
)
def test_options_of_sampling_that_do_not_fit(ncsn, tmp_path, arguments, says):
    code, _, err = ncsn("sample", "mnist14_ncsn", "--out", tmp_path / "s.png", *arguments)
    assert code == 1
    assert says in err
    assert "Traceback" not in err


def test_chains_that_ran_away_are_reported_with_the_reason(ncsn, few, tmp_path):
    few.images[0, 0, 3, 3] = -2000
    few.images[1, 0, 3, 3] = torch.nan
    code, said, err = ncsn(*few.command, "--epsilon", 1)
    assert code == 0
    assert "samples in" in said
    assert "2 of 2 samples ran away" in err
    assert "ε = 1 is above 4 σ_L² = 0.0004" in err
    few.images.fill_(0.5)
    assert "ran away" not in ncsn(*few.command)[2]


def test_inpainting_keeps_the_known_half_and_says_which(ncsn, tiny_run, tmp_path):
    arguments = ("inpaint", tiny_run, "mnist", "--count", 2, "--evaluations", 11, "--device", "cpu")
    code, said, err = ncsn(*arguments, "--out", tmp_path / "s.npy")
    assert code == 0, err
    assert "filled in where the mask is black" in said
    real = datasets.load_images("mnist", "test")[:2, 0].numpy()
    drawn = np.load(tmp_path / "s.npy")[..., 0]
    assert np.array_equal(drawn[:, :14], real[:, :14])
    assert not np.array_equal(drawn[:, 14:], real[:, 14:])
    mask = np.zeros((28, 28), np.uint8)
    mask[:, 20:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    code, _, err = ncsn(*arguments, "--out", tmp_path / "t.npy", "--mask", tmp_path / "mask.png")
    assert code == 0, err
    drawn = np.load(tmp_path / "t.npy")[..., 0]
    assert np.array_equal(drawn[:, :, 20:], real[:, :, 20:])
    assert not np.array_equal(drawn[:, :, :20], real[:, :, :20])


def test_inpainting_takes_pictures_of_ones_own(ncsn, tiny_run, tmp_path):
    (tmp_path / "mine").mkdir()
    for i, level in enumerate((60, 120, 180)):
        picture = np.full((28, 28, 3), level, np.uint8)
        Image.fromarray(picture).save(tmp_path / "mine" / f"{i}.png")
    (tmp_path / "mine" / "broken.png").write_text("none")
    arguments = ("inpaint", tiny_run, tmp_path / "mine", "--evaluations", 11, "--device", "cpu")
    code, _, err = ncsn(*arguments, "--out", tmp_path / "s.npy")
    assert code == 0, err
    assert "broken.png" in err
    drawn = np.load(tmp_path / "s.npy")
    assert drawn.shape == (3, 28, 28, 1)
    assert drawn[:, 0, 0, 0].tolist() == [60, 120, 180]
    code, _, err = ncsn(*arguments[:2], tmp_path / "nowhere", "--out", tmp_path / "t.npy")
    assert (code, "nowhere" in err, "Traceback" in err) == (1, True, False)


def test_masks_that_are_none_are_refused_with_the_polarity(ncsn, tmp_path):
    Image.fromarray(np.full((28, 28), 128, np.uint8)).save(tmp_path / "gray.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("none")
    for name, says in (("gray", "one gray level: white (255) is known"), ("small", "it is 9 × 9")):
        code, _, err = ncsn("inpaint", "mnist", "mnist", "--mask", tmp_path / f"{name}.png")
        assert (code, says in err) == (1, True), err
    clear = np.zeros((28, 28, 4), np.uint8)
    clear[:14, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    code, _, err = ncsn("inpaint", "mnist", "mnist", "--mask", tmp_path / "clear.png")
    assert (code, "is transparent: paint white" in err) == (1, True), err
    for name in ("text.png", "left", "."):
        code, _, err = ncsn("inpaint", "mnist", "mnist", "--mask", tmp_path / name)
        assert (code, "cannot be read" in err) == (1, True), err


# --- evaluate ----------------------------------------------------------------------------------


def table(out):
    """`{count: {set: FID}}` from what `ncsn evaluate` prints."""
    found, rows = {}, {}
    for line in out.splitlines():
        if "images each" in line:
            rows = found.setdefault(int(line.split()[0]), {})
        elif line.startswith("  "):
            rows[line[2:17].strip()] = float(line[17:].split()[0])
    return found


@pytest.mark.slow
def test_evaluation_prints_two_counts_floors_and_features_and_resumes(ncsn, tiny_run, tmp_path):
    arguments = ("evaluate", tiny_run, "--count", 20, "--device", "cpu", "--folder")
    code, out, err = ncsn(*arguments, tmp_path / "samples")
    assert code == 0, err
    assert "20 samples in" in out
    assert "2,000 training images, features of digit_classifier" in out
    found = table(out)
    assert list(found) == [10, 20]
    for row in found.values():
        assert list(row) == ["held-out images", "samples", "uniform noise"]
        assert row["held-out images"] < min(row["samples"], row["uniform noise"])
    assert found[10]["held-out images"] > found[20]["held-out images"]

    kept, _ = sorted((tmp_path / "samples").glob("batch_*"))
    before = (kept / "manifest.json").stat().st_mtime_ns
    code, again, _ = ncsn(*arguments, tmp_path / "samples")
    assert code == 0
    assert again == out
    assert (kept / "manifest.json").stat().st_mtime_ns == before
    code, _, err = ncsn(*arguments, tmp_path / "samples", "--seed", 1)
    assert code == 1
    assert "(seed differ)" in err


@pytest.mark.slow
def test_the_same_command_again_has_the_precision_of_the_first(
    ncsn, tiny_run, tmp_path, monkeypatch
):
    """However the processor's speed in bfloat16 is judged the second time."""
    arguments = ("evaluate", tiny_run, "--count", 4, "--device", "cpu", "--folder")
    for fast in (True, False):
        for again in (fast, not fast):
            monkeypatch.setattr(devices, "_cpu_is_fast_in_bf16", lambda again=again: again)
            code, _, err = ncsn(*arguments, tmp_path / str(fast))
            assert code == 0, err
        kept = pretrained.load(tmp_path / str(fast)).config["autocast"]
        assert kept == ("torch.bfloat16" if fast else "None")


@pytest.fixture
def drawn(monkeypatch):
    """Evaluation draws noise instead of samples; returns the settings that it was asked for."""
    asked = []

    def noise(score, count, **options):
        asked.append({"count": count} | options)
        return torch.rand(count, *score.image_shape)

    monkeypatch.setattr(generation, "sample", noise)
    return asked


def test_beyond_smoke_all_training_images_are_the_reference(
    ncsn, record, tmp_path, mnist_train, monkeypatch, drawn
):
    monkeypatch.setattr(datasets, "load_images", lambda *_, **__: mnist_train[:2100])
    monkeypatch.setattr(images, "measure", lambda *_, **__: {})
    arguments = ("--count", 4, "--device", "cpu", "--folder", tmp_path / "samples")
    for profile, count in (("smoke", "2,000"), ("cpu", "2,100")):
        code, out, err = ncsn("evaluate", record.folder, "--profile", profile, *arguments)
        assert code == 0, err
        assert f"compared with {count} training images" in out
    assert [settings["steps_per_level"] for settings in drawn] == [1, 100]


def test_more_samples_than_held_out_images_have_all_of_these_for_a_floor(
    ncsn, record, tmp_path, mnist_train, monkeypatch, drawn
):
    held_out = {"train": mnist_train[:40], "test": mnist_train[40:47]}
    monkeypatch.setattr(datasets, "load_images", lambda name, split="train", **__: held_out[split])
    arguments = ("--count", 20, "--device", "cpu", "--folder", tmp_path / "samples")
    code, out, err = ncsn("evaluate", record.folder, *arguments)
    assert code == 0, err
    assert "the floor is that of all 7 held-out images: that of 20 would be lower" in out
    assert [list(row) for row in table(out).values()] == 2 * [
        ["held-out images", "samples", "uniform noise"]
    ]


def test_evaluation_reports_chains_that_ran_away_and_goes_on(
    ncsn, record, tmp_path, mnist_train, monkeypatch
):
    away = torch.full((4, 1, 28, 28), 0.5)
    away[0, 0, 0, 0], away[1, 0, 0, 0] = 1e6, torch.nan
    monkeypatch.setattr(generation, "sample", lambda *_, **__: away)
    monkeypatch.setattr(datasets, "load_images", lambda *_, **__: mnist_train[:40])
    arguments = ("--count", 4, "--device", "cpu", "--folder", tmp_path / "samples")
    code, out, err = ncsn("evaluate", record.folder, *arguments)
    assert code == 0, err
    assert "2 of 4 samples ran away" in err
    assert len(table(out)) == 2


def test_one_of_several_processes_evaluates_the_samples(ncsn, record, monkeypatch, drawn):
    monkeypatch.setattr(cli, "global_rank", lambda: 1)
    monkeypatch.setattr(images, "measure", lambda *_, **__: pytest.fail("the first one measures"))
    code, out, err = ncsn("evaluate", record.folder, "--count", 4, "--device", "cpu")
    assert (code, out) == (0, ""), err
    assert len(drawn) == 1


@pytest.mark.slow
def test_samples_go_to_a_folder_of_runs_by_default(ncsn, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = ncsn("evaluate", tiny_run, "--count", 4, "--device", "cpu")
    assert code == 0, err
    (kept,) = (tmp_path / "runs").glob("samples-run-*-smoke-2e-05-0")
    assert pretrained.load(kept).kind == "samples"


class SmallInception(Inception):
    """Inception with 8 features and 10 classes: the real one needs minutes here."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 8, 8, stride=8)
        self.network = torch.nn.Module()
        self.network.fc = torch.nn.Linear(8, 10)

    def features(self, x):
        return self.convolution(x).mean((2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "trained_on"), [("cifar10", 20), ("celeba", 12)])
def test_color_from_its_files_to_its_numbers(
    ncsn, tmp_path, monkeypatch, request, preset, trained_on
):
    """Train, continue, sample and evaluate on files in the data set's own format."""
    from PIL import Image

    request.getfixturevalue(preset)  # writes the files into tmp_path
    monkeypatch.setenv("NCSN_DATA", str(tmp_path))
    asked = []

    def extractor(*arguments, **options):
        asked.append((arguments[0], options))
        return Extractor("small inception", SmallInception())

    monkeypatch.setattr(features, "load_extractor", extractor)
    run = tmp_path / "run"
    tiny = ["--set=batch_size=2", "--set=log_every=1", "--set=checkpoint_every=1"]
    for steps in (1, 2):
        arguments = ("train", preset, "--folder", run, "--device", "cpu", *tiny)
        code, out, err = ncsn(*arguments, f"--set=steps={steps}")
        assert code == 0, err
        assert f"{steps} of {steps} steps" in out
    record = pretrained.load(run)
    assert record.config["dataset"] == preset
    assert record.config["channels"] == 4
    assert record.provenance["images"] == trained_on

    out = tmp_path / "grid.png"
    code, _, err = ncsn("sample", run, "--count", 4, "--steps", 1, "--out", out, "--device", "cpu")
    assert code == 0, err
    with Image.open(out) as image:
        assert (image.mode, image.size) == ("RGB", (2 * 34 + 2, 2 * 34 + 2))

    arguments = ("evaluate", run, "--count", 20, "--folder", tmp_path / "samples")
    arguments += ("--inception-weights", tmp_path / "weights.pth", "--device", "cpu")
    code, out, err = ncsn(*arguments)
    assert code == 0, err
    options = {"weights": tmp_path / "weights.pth", "download": False}
    assert asked == [(preset, options)]
    assert f"{trained_on} training images, features of small inception" in out
    assert out.count("Inception score") == 6
    found = table(out)
    assert list(found) == [10, 20]
    kept = pretrained.load(tmp_path / "samples" / "batch_00001_of_10").tensors("samples")["x"]
    assert kept.shape == (10, 3, 32, 32)


def test_color_without_inception_weights_says_so_before_sampling(
    ncsn, tmp_path, monkeypatch, cifar10
):
    monkeypatch.setenv("NCSN_DATA", str(cifar10.root))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nowhere"))
    run = tmp_path / "run"
    code, _, err = ncsn("train", "cifar10", "--folder", run, "--device", "cpu", *ONE_STEP)
    assert code == 0, err
    code, _, err = ncsn("evaluate", run, "--folder", tmp_path / "samples", "--device", "cpu")
    assert code == 1
    assert "--inception-weights" in err
    assert not (tmp_path / "samples").exists()


@pytest.mark.slow
def test_garments_are_compared_in_their_classifiers_features(
    ncsn, tmp_path, monkeypatch, fashion_mnist
):
    monkeypatch.setenv("NCSN_DATA", str(fashion_mnist.root))
    run = tmp_path / "run"
    code, _, err = ncsn("train", "fashion_mnist", "--folder", run, "--device", "cpu", *ONE_STEP)
    assert code == 0, err
    arguments = ("evaluate", run, "--count", 4, "--device", "cpu", "--folder", tmp_path / "s")
    code, out, err = ncsn(*arguments)
    assert code == 0, err
    assert "features of fashion_classifier" in out


def test_a_classifier_of_garments(ncsn, tmp_path, monkeypatch, fashion_mnist):
    monkeypatch.setenv("NCSN_DATA", str(fashion_mnist.root))
    monkeypatch.chdir(tmp_path)
    code, out, err = ncsn(
        "train-classifier", "--dataset", "fashion_mnist", "--epochs", 1, "--device", "cpu"
    )
    assert code == 0, err
    assert "test accuracy" in out
    record = pretrained.load(tmp_path / "runs" / "fashion_classifier")
    assert record.config["dataset"] == "fashion_mnist"
    assert record.config["train_images"] == len(fashion_mnist.images["train"])


# --- images of one's own -----------------------------------------------------------------------


@pytest.fixture
def own_images(tmp_path):
    """A folder of 220 colored images of 12 × 10 pixels, and a file that is none."""
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"1")
    pixels = torch.randint(256, (220, 10, 12, 3), generator=torch.Generator().manual_seed(0)).byte()
    for i, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
def test_a_folder_of_pictures_trains_and_is_evaluated_on_what_was_held_out(
    ncsn, own_images, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = ("train", "pictures", "--size", 8, "--device", "cpu", "--set=channels=2")
    code, out, err = ncsn(*arguments, "--set=steps=1")
    assert code == 0, err
    assert "220 RGB images of 8 × 8 pixels in pictures" in out
    assert "1 file left out: .DS_Store (hidden)" in out
    assert "198 to train on, 22 held out" in out
    record = pretrained.load("runs/pictures-smoke-0")
    assert record.config["dataset"] == "pictures"
    assert record.provenance["images"] == 198

    monkeypatch.setattr(
        features, "load_extractor", lambda name, *_, **__: Extractor(name, SmallInception())
    )
    arguments = ("evaluate", record.folder, "--count", 20, "--device", "cpu", "--folder")
    code, out, err = ncsn(*arguments, tmp_path / "samples")
    assert code == 0, err
    assert "compared with 198 training images, features of inception" in out
    own_images.rename(tmp_path / "moved")
    code, _, err = ncsn(*arguments, tmp_path / "samples")
    assert code == 1
    assert "name them by --images" in err
    next((tmp_path / "moved").glob("*.png")).unlink()
    code, _, err = ncsn(*arguments, tmp_path / "samples", "--images", tmp_path / "moved")
    assert code == 1
    assert "holds other images than" in err


def test_a_preset_that_is_no_folder_either_says_so(ncsn, tmp_path):
    code, _, err = ncsn("train", tmp_path / "nowhere")
    assert code == 1
    assert "A folder of images" in err
    (tmp_path / "empty").mkdir()
    code, _, err = ncsn("train", tmp_path / "empty")
    assert code == 1
    assert "fewer than two images" in err


@pytest.mark.slow
def test_given_images_are_compared_beside_the_floor_of_as_many(
    ncsn, tmp_path, mnist_train, monkeypatch
):
    import numpy as np

    real = {"train": mnist_train[:2000], "test": mnist_train[2000:2200]}
    monkeypatch.setattr(data, "load_images", lambda name, split="train", **_: real[split])
    digits = mnist_train[-200:]
    np.save(tmp_path / "digits.npy", digits[:, 0].numpy())
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).random((200, 28, 28)))
    fid = {}
    for name in ("digits.npy", "noise.npy"):
        code, out, err = ncsn("compare", tmp_path / name, "--with", "mnist", "--device", "cpu")
        assert code == 0, err
        fid[name] = table(out)[200]["given images"]
        assert fid[name] > 0.5 * table(out)[200]["held-out images"]
    assert fid["noise.npy"] > 10 * fid["digits.npy"]
    code, _, err = ncsn("compare", tmp_path / "digits.npy", "--count", 50)
    assert code == 1
    assert "give 100 or more" in err


def test_images_that_are_compared_are_a_random_choice(ncsn, tmp_path, mnist_train, monkeypatch):
    """Files come in the order of their names, which may be that of their classes."""
    by_brightness = mnist_train[mnist_train.flatten(1).float().mean(1).argsort()][:400]
    np.save(tmp_path / "sorted.npy", by_brightness[:, 0].numpy())
    seen = {}

    def look(sets, *_, **__):
        seen.update(sets)
        return {}

    monkeypatch.setattr(images, "measure", look)
    monkeypatch.setattr(data, "load_images", lambda *_, **__: mnist_train[:500])
    assert ncsn("compare", tmp_path / "sorted.npy", "--device", "cpu")[0] == 0
    means = seen["given images"].flatten(1).float().mean(1)
    assert abs(means[:200].mean() - means[200:].mean()) < 0.1 * means.mean()


# --- export and the list of models -------------------------------------------------------------


def test_export_ships_the_weights_and_not_the_training_state(ncsn, tiny_run, tmp_path):
    code, _, err = ncsn("export", tiny_run, tmp_path / "shipped")
    assert code == 0, err
    run, shipped = pretrained.load(tiny_run), pretrained.load(tmp_path / "shipped")
    assert "state" in run.manifest["files"]
    assert list(shipped.manifest["files"]) == ["weights"]
    assert shipped.weights_sha256 == run.weights_sha256
    assert shipped.config == run.config


def test_a_run_is_not_exported_onto_itself(ncsn, tiny_run):
    code, _, err = ncsn("export", tiny_run, Path(tiny_run) / ".." / Path(tiny_run).name)
    assert code == 1
    assert "onto itself" in err
    assert "state" in pretrained.load(tiny_run).manifest["files"]


def test_models_are_listed_and_verified(ncsn):
    code, out, err = ncsn("models")
    assert code == 0, err
    for name in pretrained.available():
        assert f"{name}:" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "mnst"], "known: mnist, fashion_mnist, cifar10, celeba"),
        (["train", "mnist", "--profile", "tpu"], "known: smoke, cpu, gpu"),
        (["train", "mnist", "--set", "step=3"], "unknown setting 'step'"),
        (["train", "mnist", "--set", "steps"], "NAME=VALUE"),
        (["train", "mnist", "--set", "steps=["], "value of --set 'steps=[' cannot be read"),
        (["train", "mnist", "--set", "batch_size=99999"], "number of images"),
        (["train", "mnist", "--set", "sigma_min=2"], "must decrease"),
        (["train", "mnist", "--set", "learning_rate=1e"], "must be a number; got '1e'"),
        (["train", "mnist", "--set", "seed=2"], "--set does not take seed"),
        (["train", "mnist", "--start-from", "mnst"], "unknown checkpoint 'mnst'"),
        (["train", "mnist", "--device", "gpu"], "unknown device 'gpu'"),
        (["sample", "no-such-model"], "unknown checkpoint 'no-such-model'"),
        (["evaluate", "no-such-model"], "unknown checkpoint 'no-such-model'"),
    ],
)
def test_mistakes_end_with_a_message_and_no_traceback(ncsn, tmp_path, arguments, says):
    if arguments[0] == "train":
        arguments = [*arguments, "--folder", tmp_path / "run"]
    with without_type_checks():
        code, _, err = ncsn(*arguments)
    assert code == 1
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_is_not_there_names_its_place(ncsn, tmp_path, monkeypatch):
    monkeypatch.setenv("NCSN_DATA", str(tmp_path / "nowhere"))
    code, _, err = ncsn("train", "cifar10", "--folder", tmp_path / "run")
    assert code == 1
    assert "cifar-10-batches-py" in err
    assert str(tmp_path / "nowhere") in err


def test_an_interrupt_exits_with_130_and_keeps_the_run(ncsn, tmp_path, monkeypatch):
    steps = []
    advance = run.Run.advance

    def interrupted(self, *arguments):
        advance(self, *arguments)
        steps.append(self.step)
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Run, "advance", interrupted)
    folder = tmp_path / "run"
    code, _, err = ncsn("train", "mnist", "--folder", folder, "--device", "cpu", *TINY)
    assert code == 130
    assert "interrupted" in err
    assert pretrained.load(folder).manifest["step"] == steps[-1] == 1


def test_a_sampler_that_diverges_ends_in_one_line(ncsn, tiny_run, tmp_path):
    options = ("--steps", 3, "--epsilon", 1e38, "--count", 1, "--device", "cpu")
    code, out, err = ncsn("sample", tiny_run, *options, "--out", tmp_path / "grid.png")
    assert (code, out) == (1, "")
    assert "the score is not finite at evaluation" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.slow
def test_every_command_works_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "ncsn_core", "--version"], capture_output=True, text=True
    )
    assert result.returncode == 0
    assert "ncsn" in result.stdout
