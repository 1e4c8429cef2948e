"""The notebooks that train and evaluate, with parameters as people give them."""

import json
from pathlib import Path

import matplotlib
import pytest
import torch

from ncsn_core import checkpoints, data, pretrained, training
from ncsn_core.errors import NCSNError
from ncsn_core.metrics import features

FOLDER = Path(__file__).parents[1] / "notebooks" / "training"
SMALL = {"channels": 8, "batch_size": 64, "image_size": 14, "steps": 4, "log_every": 2}


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setattr(matplotlib.pyplot, "show", matplotlib.pyplot.close)


def run(name, *, until="", **parameters):
    """The names that a notebook's cells leave behind, up to the one that holds `until`."""
    names = {}
    for cell in json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            exec(source, names)
            if "parameters" in cell["metadata"].get("tags", []):
                unknown = parameters.keys() - names.keys()
                assert not unknown
                names |= parameters
            if until and until in source:
                break
    return names


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_nothing_as_text_is_nothing_in_every_notebook(path):
    """`-r folder None`: a folder of that name is not what anybody wants."""
    plain = run(path.stem, until="figures.use()")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (source,) = [
        "".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])
    ]
    empty = [line.split(" = ")[0] for line in source.splitlines() if " = None" in line]
    found = run(path.stem, until="figures.use()", **dict.fromkeys(empty, "None"))
    later = {"inception_weights", "ncsn"}  # read where they are used
    assert empty
    assert {name: found[name] for name in set(empty) - later} == dict.fromkeys(set(empty) - later)
    assert plain.keys() == found.keys()


def test_parameters_that_come_as_text_are_read_before_training(few_images):
    overrides = '{"steps": 7, "learning_rate": 1e-4}'
    found = run("train_ncsn", until="config =", overrides=overrides, minutes="None", folder="None")
    assert (found["config"].steps, found["config"].learning_rate) == (7, 1e-4)
    assert found["minutes"] is found["folder"] is None
    with pytest.raises(ValueError, match=r"overrides must be settings, such as .*; got 'steps=5'"):
        run("train_ncsn", until="config =", overrides="steps=5")


@pytest.mark.slow
def test_the_estimate_is_of_the_run_that_will_be_made(few_images, monkeypatch):
    """Also where settings replace the profile's, and a decay at the end is planned."""
    planned, train = [], training.train

    def spy(config, *arguments, **options):
        planned.append(config)
        return train(config, *arguments, **options)

    monkeypatch.setattr(training, "train", spy)
    overrides = SMALL | {"rate_schedule": "constant", "decay_steps": 2, "checkpoint_every": 2}
    config = run("train_ncsn", until="each =", overrides=overrides, device="cpu")["config"]
    assert [trial.steps for trial in planned] == [1, 3]
    changed = {"steps", "decay_steps", "log_every", "checkpoint_every"}
    for trial in planned:
        told = trial.to_dict().items() - config.to_dict().items()
        assert {name for name, _ in told} <= changed


@pytest.mark.slow
def test_a_run_of_other_sizes_is_trained_looked_at_and_started_from(few_images, tmp_path):
    options = {"overrides": SMALL | {"checkpoint_every": 2}, "device": "cpu"}
    first = run("train_ncsn", folder=str(tmp_path / "first"), **options)
    second = run("train_ncsn", until="run_folder =", start_from=str(tmp_path / "first"), **options)
    start = second["record"].provenance["started_from"]
    assert start["weights_sha256"] == first["record"].weights_sha256
    with pytest.raises(NCSNError, match="that network has channels 16 and this one channels 8"):
        run("train_ncsn", until="each =", start_from="mnist", **options)


@pytest.mark.slow
@pytest.mark.parametrize("download", [True, False])
def test_an_evaluation_downloads_what_is_missing_where_it_may(
    tmp_path, monkeypatch, record, download
):
    """As on a Colab machine that has lost its data."""
    config = record.config | {"preset": "cifar10", "dataset": "cifar10", "image_channels": 1}
    weights = {"weights": record.tensors()}
    checkpoints.save(tmp_path / "colors", weights, kind="ncsn", config=config)
    asked = []

    def load_images(name, split="train", *, download=False, size=None):
        asked.append((name, split, download))
        return torch.randint(0, 256, (600, 1, size, size), dtype=torch.uint8)

    def load_extractor(name, device, *, weights=None, download=False):
        asked.append((name, "features", download))
        return features_of_digits(device=device)

    found = pretrained.load("digit_classifier")
    classifier = features.Extractor("digits", found.classifier())
    features_of_digits = lambda device: classifier  # noqa: E731
    monkeypatch.setattr(data, "load_images", load_images)
    monkeypatch.setattr(features, "load_extractor", load_extractor)
    run(
        "evaluate_ncsn",
        checkpoint=str(tmp_path / "colors"),
        samples="4",
        device="cpu",
        frames=0,
        download=download,
    )
    assert set(asked) == {("cifar10", kind, download) for kind in ("train", "test", "features")}
