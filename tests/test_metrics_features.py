"""The networks in whose features images are compared; Inception with weights made up here."""

import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from ncsn_core import pretrained
from ncsn_core.data import to_bytes
from ncsn_core.errors import CorruptFileError, MissingDataError, UnknownNameError
from ncsn_core.metrics import features
from ncsn_core.metrics.classifier import Classifier
from ncsn_core.metrics.features import Extractor, inception_score, load_extractor, load_inception
from ncsn_core.metrics.images import distances


@pytest.mark.parametrize("dataset", sorted(features.CLASSIFIERS))
def test_gray_data_sets_are_compared_in_the_features_of_their_classifier(dataset):
    name = features.CLASSIFIERS[dataset]
    extractor = load_extractor(dataset)
    record = pretrained.load(name)
    assert extractor.name == name
    assert extractor.sha256 == record.weights_sha256
    assert record.config["dataset"] == dataset
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(extractor(x), record.classifier().features(x))


def test_unknown_data_sets_are_refused():
    with pytest.raises(UnknownNameError, match=r"'svhn'; known: mnist, .*cifar10, celeba"):
        load_extractor("svhn")


def test_features_are_those_of_the_picture_a_screen_would_show():
    torch.manual_seed(0)
    network = Classifier().eval().requires_grad_(False)
    images = torch.randint(256, (7, 1, 28, 28), dtype=torch.uint8)
    extractor = Extractor("c", network, batch_size=3)
    expected = network.features(images / 255)
    torch.testing.assert_close(extractor(images), expected)
    torch.testing.assert_close(extractor(images / 255), expected)
    beyond = torch.where(images > 127, 1.2, -0.2)
    torch.testing.assert_close(extractor(beyond), network.features((images > 127).float()))


@pytest.mark.parametrize("size", [14, 56])
def test_images_of_another_size_are_scaled_to_the_networks(size):
    torch.manual_seed(0)
    network = Classifier().eval().requires_grad_(False)
    images = torch.rand(3, 1, size, size)
    scaled = torch.nn.functional.interpolate(images, size=(28, 28), mode="bilinear")
    torch.testing.assert_close(Extractor("c", network)(images), network.features(scaled))


# --- Inception ---------------------------------------------------------------------------------


class Images(Dataset):
    """What torch-fidelity reads: one uint8 image at a time."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


def frechet(a, b):
    """As in test_evaluation, by singular values: Σ = AᵀA/(n − 1) of rank n − 1 at most."""
    a, b = a.double().numpy(), b.double().numpy()
    difference = a.mean(0) - b.mean(0)
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return difference @ difference + (a**2).sum() + (b**2).sum() - 2 * root


@pytest.mark.slow
def test_inception_numbers_are_their_formulas_and_those_of_torch_fidelity(inception_weights):
    from torch_fidelity import calculate_metrics

    real = torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8)
    fake = torch.rand(12, 3, 32, 32) ** 2
    inception = load_extractor("cifar10", weights=inception_weights)
    seen, known = inception(fake), inception(real)
    got = distances(seen, known, inception, subset_size=6)
    assert seen.shape == (12, 2048)
    assert got.fid == pytest.approx(frechet(seen, known), rel=1e-4)
    assert got.count == got.reference_count == 12

    logits = seen @ torch.load(inception_weights, weights_only=True)["fc.weight"].T
    p = logits.double().softmax(1).numpy()[np.random.RandomState(2020).permutation(12)]
    parts = [p[i * 12 // 10 : (i + 1) * 12 // 10] for i in range(10)]
    scores = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in parts]
    assert got.inception_score == pytest.approx(np.mean(scores), rel=1e-6)
    assert got.inception_score_std == pytest.approx(np.std(scores), rel=1e-4)
    assert got.inception_score > 1.001

    theirs = calculate_metrics(
        input1=Images(to_bytes(fake)),
        input2=Images(real),
        fid=True,
        isc=True,
        feature_extractor_weights_path=str(inception_weights),
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    assert got.fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert got.inception_score == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert got.inception_score_std == pytest.approx(theirs["inception_score_std"], rel=1e-2)


def test_weights_of_another_origin_are_told_from_the_standard_ones(inception_weights):
    inception = load_inception(weights=inception_weights)
    digest = hashlib.sha256(Path(inception_weights).read_bytes()).hexdigest()
    assert inception.sha256 == digest
    assert inception.name == f"inception-v3 with the weights {digest[:12]}"
    assert not inception.network.training


def test_inception_without_weights_says_where_to_put_them(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    with pytest.raises(MissingDataError, match=r"no file .*6726825d\.pth.*--download") as caught:
        load_extractor("celeba")
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(MissingDataError, match=r"no file .*mine\.pth"):
        load_inception(weights=tmp_path / "mine.pth", download=True)


def test_a_failed_download_is_the_users_problem_and_not_a_traceback(monkeypatch, tmp_path):
    def offline(*arguments, **options):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(MissingDataError, match=r"could not be downloaded .*no network"):
        load_extractor("cifar10", download=True)


def test_an_allowed_download_is_checked_against_its_hash(monkeypatch, tmp_path, inception_weights):
    asked = []

    def fetch(url, path, hash_prefix):
        asked.append((url.rpartition("/")[2], hash_prefix))
        Path(path).symlink_to(inception_weights)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert load_extractor("cifar10", download=True).name.startswith("inception-v3")
    assert load_extractor("cifar10").name.startswith("inception-v3")
    assert asked == [("weights-inception-2015-12-05-6726825d.pth", "6726825d")]


class Mischief:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", ["mischief", "nothing", "other"])
def test_a_file_that_is_not_inception_is_refused_and_runs_no_code(tmp_path, content):
    path, victim = tmp_path / "weights.pth", tmp_path / "victim"
    if content == "mischief":
        path.write_bytes(pickle.dumps({"fc.weight": Mischief(victim)}))
    elif content == "nothing":
        path.write_bytes(b"")
    else:
        torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(CorruptFileError, match=r"weights\.pth does not hold the weights"):
        load_inception(weights=path)
    assert not victim.exists()


# --- Inception score ---------------------------------------------------------------------------


def test_inception_score_of_certain_predictions_is_the_number_of_classes():
    logits = 100 * torch.eye(5).repeat(40, 1)
    mean, std = inception_score(logits, splits=1)
    assert mean == pytest.approx(5, rel=1e-6)
    assert std == 0


def test_inception_score_of_equal_predictions_is_one():
    mean, std = inception_score(torch.randn(1, 7).expand(30, 7))
    assert mean == pytest.approx(1)
    assert std == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("splits", [0, 5])
def test_a_part_needs_an_image(splits):
    with pytest.raises(ValueError, match=f"between 1 and the 4 images; got {splits}"):
        inception_score(torch.randn(4, 3), splits=splits)
