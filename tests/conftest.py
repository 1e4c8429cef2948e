"""Fixtures and helpers that several test modules share."""

import gzip
import struct

import pytest
import torch
from hypothesis import settings

from ncsn_core import checkpoints, training
from ncsn_core.config import load_config
from ncsn_core.data import load_images

# The same examples on every machine and in every run, and nothing left in the working tree.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws without a generator is the same in every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_train():
    """The 60,000 training images, uint8, read once."""
    return load_images("mnist")


@pytest.fixture
def few_images(mnist_train, monkeypatch):
    """Training reads 64 images of MNIST, without decompressing the file every time."""
    images = mnist_train[:64].clone()
    monkeypatch.setattr(training, "load_images", lambda *args, **kwargs: images)
    return images


@pytest.fixture
def tiny_config():
    """The smoke configuration, shrunk to a tenth of a second; keywords replace settings."""

    def build(**changes):
        small = {
            "channels": 2,
            "train_images": 64,
            "batch_size": 4,
            "steps": 6,
            "log_every": 1,
            "checkpoint_every": 2,
        }
        return load_config("mnist", "smoke", **small | changes)

    return build


@pytest.fixture
def run_training():
    """`train` on one CPU in float32, eagerly and silently: the same numbers everywhere."""

    def run(config, folder, **options):
        plain = {"device": "cpu", "precision": "32-true", "compile": False, "progress": False}
        return training.train(config, folder, **plain | options)

    return run


@pytest.fixture
def record(tmp_path):
    """An untrained NCSN of 2 channels in a folder, with weights and a training state."""
    config = load_config("mnist", "smoke", channels=2).to_dict()
    weights = checkpoints.build_network(config).state_dict()
    return checkpoints.save(
        tmp_path / "model",
        {"weights": weights, "state": {"averaged": torch.tensor(3)}},
        kind="ncsn",
        config=config,
        metrics={"loss": {"value": 1.5, "images": 10}},
        history={"step": [1, 2], "loss": [392.0, 391.5]},
        provenance={"seed": 0},
    )


@pytest.fixture
def write_idx():
    """Write a uint8 tensor as an IDX file, gzipped when the name ends in .gz; returns the path."""

    def write(path, tensor):
        header = bytes([0, 0, 8, tensor.ndim]) + struct.pack(f">{tensor.ndim}I", *tensor.shape)
        raw = header + tensor.numpy().tobytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
        return path

    return write
