"""Fixtures and helpers that several test modules share."""

import gc
import gzip
import hashlib
import json
import os
import pickle
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning_fabric  # noqa: F401  These two take seconds, which no test should pay for
import numpy as np
import pytest
import torch
import torch._dynamo
from hypothesis import settings
from PIL import Image
from torchvision import datasets

from ncsn_core import checkpoints, cli, data, devices, networks, pretrained, training
from ncsn_core.config import load_config
from ncsn_core.data import load_images
from ncsn_core.files import write_atomically

# The same examples on every machine and in every run, and nothing left in the working tree: a few
# in the suite, and many under `make stress`.
for profile, examples in (("suite", 15), ("stress", 300)):
    settings.register_profile(
        profile, deadline=None, derandomize=True, database=None, max_examples=examples
    )
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "suite")
settings.load_profile(PROFILE)


def pytest_collection_finish():
    """What the imports made stays: garbage is looked for among what the tests make."""
    gc.freeze()


def pytest_unconfigure():
    """At the end it may go."""
    gc.unfreeze()


FAST = 3.0
"""Seconds of processor time that a test may take which is not marked slow."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a fast test that is none, so that `make quick` stays quick."""
    begin = sum(os.times()[:4])  # of this process, and of those that it started and that have ended
    result = yield
    spent = sum(os.times()[:4]) - begin
    slow = any(item.get_closest_marker(name) for name in ("slow", "stress", "browser", "colab"))
    measured = PROFILE == "suite" and sys.gettrace() is None  # coverage takes time itself
    if measured and not slow and spent > FAST:
        pytest.fail(
            f"took {spent:.1f} s of processor time, and a test that is not marked slow takes at "
            f"most {FAST:.0f}: make it faster, or mark it slow"
        )
    return result


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws without a generator is the same in every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture
def figures():
    """Keep numbers for the page of promises, under a name: where `make stress` says, or nowhere."""

    def keep(name, /, **values):
        folder = os.environ.get("NCSN_FIGURES")
        if folder:
            path = Path(folder) / f"{name}.json"
            write_atomically(path, json.dumps(values, indent=1).encode())

    return keep


@pytest.fixture(scope="session")
def mnist_train():
    """The 60,000 training images, uint8, read once."""
    return load_images("mnist")


@pytest.fixture
def few_images(mnist_train, monkeypatch):
    """Training reads 64 images of MNIST, without decompressing the file every time."""
    images = mnist_train[:64].clone()

    def load_images(*args, size=None, **kwargs):
        return images if size in (None, 32) else data.block_average(images, size)

    monkeypatch.setattr(training, "load_images", load_images)
    return images


@pytest.fixture
def ncsn(monkeypatch, capsys):
    """Run `ncsn ARGUMENTS`; returns exit code, stdout and stderr."""
    monkeypatch.setattr(devices, "can_compile", lambda device: False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ncsn", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


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
    weights = networks.build_network(config).state_dict()
    saved = checkpoints.save(
        tmp_path / "model",
        {"weights": weights, "state": {"averaged": torch.tensor(3)}},
        kind="ncsn",
        config=config,
        metrics={"loss": {"value": 1.5, "images": 10}},
        history={"step": [1, 2], "loss": [392.0, 391.5]},
        provenance={"seed": 0},
    )
    return pretrained.model(saved)


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


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """A file like torch-fidelity's with the Inception network's weights, drawn at random."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments, **options):
            pass

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    network = Blank("blank", ["2048"], feature_extractor_weights_path=path)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):  # so that signals neither fade nor explode
            torch.nn.init.kaiming_normal_(layer.weight)
    torch.nn.init.normal_(network.fc.weight)  # so that predictions differ
    torch.save(network.state_dict(), path)
    yield path
    path.unlink()  # 95 MB


# --- data sets in their real formats ------------------------------------------------------------


@pytest.fixture
def fashion_mnist(tmp_path, write_idx):
    """Four IDX files, unzipped, as Fashion-MNIST has them; 7 and 4 images."""
    images, labels = {}, {}
    for split, prefix, count in (("train", "train", 7), ("test", "t10k", 4)):
        images[split] = torch.randint(256, (count, 28, 28), dtype=torch.uint8)
        labels[split] = torch.randint(10, (count,), dtype=torch.uint8)
        raw = tmp_path / "FashionMNIST" / "raw"
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images[split])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels[split])
    return SimpleNamespace(root=tmp_path, images=images, labels=labels)


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """The pickled batches of cifar-10-batches-py, with torchvision's MD5 list.

    4 images in each training file, 20 in the test file.
    """
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    labels = [i % 10 for i in range(40)]

    def write(name, content):
        raw = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    parts = {f"data_batch_{i + 1}": slice(4 * i, 4 * i + 4) for i in range(5)}
    files = [
        write(name, {"data": pixels[part].reshape(-1, 3072), "labels": labels[part]})
        for name, part in (parts | {"test_batch": slice(20, 40)}).items()
    ]
    meta, digest = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", files[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", files[5:])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": meta, "key": "label_names", "md5": digest}
    )
    return SimpleNamespace(
        root=tmp_path, folder=folder, images=torch.from_numpy(pixels), labels=labels
    )


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """Aligned 178×218 JPEGs, and the five annotation files, with torchvision's MD5 list.

    12 training images of brightness 40 and 120 in turn, and 20 test images.
    """
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 33)]
    for brightness, name in zip([40, 120] * 6 + list(range(60, 160, 5)), names, strict=True):
        face = np.full((218, 178, 3), 255, np.uint8)  # white outside the central 140×140
        face[39:179, 19:159] = (brightness, brightness // 2, 10)
        Image.fromarray(face).save(folder / "img_align_celeba" / name, quality=95)
    attributes = ["Bald", "Hat"]
    texts = {
        "list_eval_partition.txt": [
            f"{n} {s}" for n, s in zip(names, [0] * 12 + [2] * 20, strict=True)
        ],
        "identity_CelebA.txt": [f"{n} 7" for n in names],
        "list_attr_celeba.txt": ["32", " ".join(attributes), *(f"{n} 1 -1" for n in names)],
        "list_bbox_celeba.txt": ["32", "image_id x_1 y_1 width height"]
        + [f"{n} 1 2 3 4" for n in names],
        "list_landmarks_align_celeba.txt": ["32", "lefteye_x lefteye_y"]
        + [f"{n} 5 6" for n in names],
    }
    listed = []
    for name, lines in texts.items():
        raw = "\n".join(lines).encode() + b"\n"
        (folder / name).write_bytes(raw)
        listed.append(("no-id", hashlib.md5(raw).hexdigest(), name))
    monkeypatch.setattr(datasets.CelebA, "file_list", listed)
    return tmp_path
