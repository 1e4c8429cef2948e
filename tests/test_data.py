"""Data sets on disk, whole and damaged, and the batches made from them."""

import contextlib
import gzip
import hashlib
import re
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import datasets

from ncsn_core.data import datasets as data
from ncsn_core.data.idx import read_idx
from ncsn_core.errors import CorruptFileError, MissingDataError, NCSNError, UnknownNameError
from ncsn_core.randomness import generator_for

# --- MNIST -------------------------------------------------------------------------------------


def test_mnist_train_is_the_published_data(mnist_train):
    assert mnist_train.shape == (60_000, 1, 28, 28)
    assert mnist_train.dtype == torch.uint8
    assert int(mnist_train.long().sum()) == 1_567_298_545
    assert float(mnist_train.double().mean() / 255) == pytest.approx(0.1307, abs=5e-5)


def test_mnist_test_and_labels_fit_together():
    images, labels = data.load_images("mnist", "test"), data.load_labels("mnist", "test")
    assert images.shape == (10_000, 1, 28, 28)
    assert labels.shape == (10_000,)
    assert labels.dtype == torch.int64
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    ink = torch.stack([images[labels == digit].double().mean() for digit in range(10)])
    assert int(ink.argmin()) == 1  # ones use the least ink, zeros the most
    assert int(ink.argmax()) == 0


def test_mnist_training_labels():
    labels = data.load_labels("mnist")
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert len(labels) == 60_000


def test_an_altered_mnist_file_is_refused(tmp_path, monkeypatch, write_idx):
    """The file is sound and of the right size, and is not the published one."""
    name = data.MNIST_FILES["test", "labels"][0]
    for part in ("images", "labels"):
        shape = (10_000, 28, 28) if part == "images" else (10_000,)
        path = tmp_path / "mnist" / data.MNIST_FILES["test", part][0]
        write_idx(path, torch.zeros(shape, dtype=torch.uint8))
    monkeypatch.setattr(data, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(CorruptFileError, match="not the published file"):
        data.load_images("mnist", "test")
    (tmp_path / "mnist" / name).unlink()
    with pytest.raises(NCSNError):
        data.load_labels("mnist", "test")


# --- IDX files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 3, 2), (0, 3)])
def test_idx_round_trip(tmp_path, write_idx, shape):
    tensor = torch.randint(256, shape, dtype=torch.uint8)
    assert torch.equal(read_idx(write_idx(tmp_path / "x.gz", tensor)), tensor)


def test_idx_hash_is_of_the_uncompressed_bytes(tmp_path, write_idx):
    path = write_idx(tmp_path / "x.gz", torch.arange(6, dtype=torch.uint8))
    digest = hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
    assert read_idx(path, sha256=digest).tolist() == list(range(6))
    with pytest.raises(CorruptFileError, match=r"x\.gz is not the published file"):
        read_idx(path, sha256="0" * 64)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"PNG\x01\0\0\0\x01a", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01abcd", "not an IDX file of unsigned bytes"),  # float32
        (b"\0\0\x08\x00", "ends inside its header"),
        (b"\0\0\x08\x02\0\0\0\x02\0\0", "ends inside its header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "announces 5 bytes and holds 3"),
        (b"\0\0\x08\x02\0\0\0\x02\0\0\0\x02abcde", "announces 2 × 2 bytes and holds 5"),
        (b"\0\0\x08\x04" + b"\0\0\0\0" + 3 * b"\xff\xff\xff\xff", "announces"),
    ],
    ids=["empty", "short", "other", "floats", "no sizes", "header", "short body", "long", "vast"],
)
def test_files_that_are_not_idx(tmp_path, raw, complaint):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(raw))
    with pytest.raises(CorruptFileError, match=complaint):
        read_idx(path)


@pytest.mark.parametrize("kept", [0, 1, 9, 10, 15, -9, -8, -1])
def test_truncated_gzip(tmp_path, write_idx, kept):
    path = write_idx(tmp_path / "x.gz", torch.arange(100, dtype=torch.uint8))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptFileError, match=r"x\.gz"):
        read_idx(path)


def test_missing_and_uncompressed_files(tmp_path, write_idx):
    with pytest.raises(CorruptFileError, match=r"x\.gz cannot be read"):
        read_idx(tmp_path / "x.gz")
    plain = write_idx(tmp_path / "plain", torch.arange(6, dtype=torch.uint8))
    with pytest.raises(CorruptFileError, match="cannot be read as gzip"):
        read_idx(plain)


GOOD = b"\0\0\x08\x02\0\0\0\x03\0\0\0\x04" + bytes(range(12))


def test_a_damaged_file_is_refused_or_harmless(tmp_path):
    """Every flipped bit and every cut: the original (a bit of no meaning) or a CorruptFileError."""
    good, path = gzip.compress(GOOD, mtime=0), tmp_path / "damaged.gz"
    damaged = [good[:position] for position in range(len(good))]
    for bit in range(8 * len(good)):
        damaged.append((int.from_bytes(good) ^ 1 << bit).to_bytes(len(good)))
    for raw in damaged:
        path.write_bytes(raw)
        with contextlib.suppress(CorruptFileError):
            tensor = read_idx(path, sha256=hashlib.sha256(GOOD).hexdigest())
            assert tensor.flatten().tolist() == list(range(12))


@settings(max_examples=10 * settings().max_examples)
@given(
    magic=st.sampled_from([b"\0\0\x08", b"\0\0\x09"]),
    dimensions=st.integers(0, 255),
    sizes=st.lists(st.sampled_from([0, 1, 2, 3, 2**16, 2**32 - 1]), max_size=6),
    body=st.binary(max_size=40),
)
def test_any_bytes_give_a_tensor_of_the_announced_shape_or_a_corrupt_file_error(
    tmp_path_factory, magic, dimensions, sizes, body
):
    raw = magic + bytes([dimensions]) + b"".join(s.to_bytes(4, "big") for s in sizes) + body
    path = tmp_path_factory.getbasetemp() / "any.gz"
    path.write_bytes(gzip.compress(raw))
    try:
        tensor = read_idx(path)
    except CorruptFileError:
        return
    assert tensor.dtype == torch.uint8
    assert tensor.ndim == dimensions
    assert raw.endswith(tensor.numpy().tobytes())


# --- names and missing data --------------------------------------------------------------------


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(UnknownNameError, match="mnist, fashion_mnist, cifar10, celeba"):
        data.load_images("imagenet", root=tmp_path)
    with pytest.raises(UnknownNameError, match="known: train, test"):
        data.load_images("mnist", "validation")
    with pytest.raises(UnknownNameError, match="known: train, test"):
        data.load_labels("mnist", "valid")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("fashion_mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("celeba", "img_align_celeba"),
    ],
)
def test_missing_data_says_what_to_put_where(tmp_path, name, place):
    with pytest.raises(MissingDataError) as caught:
        data.load_images(name, root=tmp_path / "somewhere")
    message = str(caught.value)
    assert name in message
    assert place in message
    assert str(tmp_path / "somewhere") in message
    assert "--download" in message
    assert "NCSN_DATA" in message
    assert list(tmp_path.iterdir()) == []  # nothing was created


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(datasets, "CIFAR10", offline)
    with pytest.raises(MissingDataError, match=r"could not be downloaded \(Network is unreach"):
        data.load_images("cifar10", root=tmp_path, download=True)


def test_what_torchvision_downloads_finds_its_folder(tmp_path, monkeypatch):
    def blocked(folder, *, download, **options):
        assert download
        assert folder.is_dir()
        raise RuntimeError("Google Drive wants a confirmation")

    monkeypatch.setattr(datasets, "CelebA", blocked)
    with pytest.raises(MissingDataError, match=r"downloaded .*a confirmation") as error:
        data.load_images("celeba", root=tmp_path / "new", download=True)
    assert "img_align_celeba" in str(error.value)


def test_celebas_quota_is_one_sentence_with_where_from_and_where_to(tmp_path, monkeypatch):
    class FileURLRetrievalError(Exception):
        """As gdown's: no RuntimeError."""

    def quota(folder, **options):
        raise FileURLRetrievalError("Cannot retrieve the public link.\n\nToo many users\n")

    monkeypatch.setattr(datasets, "CelebA", quota)
    with pytest.raises(MissingDataError, match=r"link\. Too many users\)") as caught:
        data.load_images("celeba", root=tmp_path, download=True)
    message = str(caught.value)
    for part in ("mmlab.ie.cuhk.edu.hk", "list_eval_partition.txt", str(tmp_path / "celeba")):
        assert part in message
    assert "\n" not in message


def test_only_what_is_not_there_is_fetched(fashion_mnist, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(data, "fetch", lambda archive, root: fetched.append((archive.folder, root)))
    data.load_images("fashion_mnist", root=fashion_mnist.root, download=True)
    assert fetched == []
    with pytest.raises(MissingDataError):  # nothing has come
        data.load_images("fashion_mnist", root=tmp_path / "new", download=True)
    assert fetched == [("FashionMNIST/raw", tmp_path / "new")]


def test_data_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NCSN_DATA", raising=False)
    assert data.data_root() == tmp_path / "cache" / "ncsn" / "data"
    monkeypatch.setenv("NCSN_DATA", str(tmp_path / "mine"))
    assert data.data_root() == tmp_path / "mine"
    with pytest.raises(MissingDataError, match=re.escape(str(tmp_path / "mine"))):
        data.load_images("cifar10")


# --- the other data sets, from files in their real formats --------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_fashion_mnist_from_its_files(fashion_mnist, split):
    images = data.load_images("fashion_mnist", split, root=fashion_mnist.root)
    labels = data.load_labels("fashion_mnist", split, root=fashion_mnist.root)
    assert images.dtype == torch.uint8
    assert torch.equal(images, fashion_mnist.images[split][:, None])
    assert torch.equal(labels, fashion_mnist.labels[split].long())


@pytest.mark.parametrize("kept", [0, 10, 100], ids=["empty", "header cut", "images cut"])
def test_a_truncated_fashion_mnist_file_is_the_users_problem_and_not_a_traceback(
    fashion_mnist, kept
):
    path = fashion_mnist.root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(NCSNError, match="fashion_mnist"):
        data.load_images("fashion_mnist", root=fashion_mnist.root)


def test_a_fashion_mnist_file_that_is_something_else(fashion_mnist):
    path = fashion_mnist.root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(b"<html>not found</html>" * 10)
    with pytest.raises(NCSNError, match="fashion_mnist"):
        data.load_images("fashion_mnist", root=fashion_mnist.root)


@pytest.mark.parametrize(("split", "part"), [("train", slice(20)), ("test", slice(20, 40))])
def test_cifar10_from_its_files(cifar10, split, part):
    images = data.load_images("cifar10", split, root=cifar10.root)
    assert images.is_contiguous()
    assert torch.equal(images, cifar10.images[part])
    assert data.load_labels("cifar10", split, root=cifar10.root).tolist() == cifar10.labels[part]


def test_an_altered_cifar10_file_is_refused(cifar10):
    path = cifar10.folder / "data_batch_3"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(MissingDataError, match="corrupted"):
        data.load_images("cifar10", root=cifar10.root)


def test_celeba_is_cropped_to_140_and_resized_to_32(celeba):
    images = data.load_images("celeba", root=celeba)
    assert images.shape == (12, 3, 32, 32)
    assert images.dtype == torch.uint8
    for image, brightness in zip(images, [40, 120] * 6, strict=True):
        inner = image[:, 2:-2, 2:-2].float()
        expected = torch.tensor([brightness, brightness // 2, 10]).reshape(3, 1, 1)
        assert (inner - expected).abs().max() <= 4  # JPEG
        assert image.max() < 200  # nothing of the white frame
    assert data.load_images("celeba", "test", root=celeba).shape == (20, 3, 32, 32)


def test_celeba_has_no_labels(celeba):
    with pytest.raises(UnknownNameError, match="labelled data set 'celeba'; known: mnist"):
        data.load_labels("celeba", root=celeba)


# --- pixels ------------------------------------------------------------------------------------

ALL_GRAYS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_to_unit_reaches_both_ends():
    unit = data.to_unit(ALL_GRAYS)
    assert unit.dtype == torch.float32
    assert unit.flatten()[[0, 51, 255]].tolist() == [0.0, pytest.approx(0.2), 1.0]


def test_block_averages_are_rounded_means_of_blocks():
    averaged = data.block_average(ALL_GRAYS, 4)
    assert averaged.dtype == torch.uint8
    expected = ALL_GRAYS.double().reshape(-1, 1, 4, 4, 4, 4).mean((3, 5)).round()
    assert averaged.tolist() == expected.tolist()
    assert averaged[0, 0, 0, 0] == 26  # the mean of 0-3, 16-19, 32-35, 48-51 is 25.5
    assert data.block_average(ALL_GRAYS, 16) is ALL_GRAYS


@pytest.mark.parametrize("size", [0, -2, 3, 32])
def test_a_size_that_divides_nothing_is_refused(size):
    with pytest.raises(ValueError, match=f"16 × 16 pixels cannot be averaged down to {size} × "):
        data.block_average(ALL_GRAYS, size)


def test_images_are_averaged_down_when_loaded():
    small = data.load_images("mnist", "test", size=14)
    assert small.shape == (10_000, 1, 14, 14)
    assert torch.equal(small, data.block_average(data.load_images("mnist", "test"), 14))


def test_dequantization_adds_uniform_noise_of_one_gray_level():
    images = ALL_GRAYS.expand(500, -1, -1, -1)
    noisy = data.dequantize(images, generator=generator_for(0))
    u = noisy.double() * 256 - images
    assert u.min() >= 0
    assert u.max() <= 1  # 1 only where float32 rounds up
    n = u.numel()
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / n) ** 0.5)
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.02)


def test_dequantization_is_the_papers():
    images = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8)
    u = torch.rand(images.shape, generator=generator_for(5))
    expected = images / 255 * 255 / 256 + u / 256
    torch.testing.assert_close(data.dequantize(images, generator=generator_for(5)), expected)


# --- batches -----------------------------------------------------------------------------------


def numbered(count):
    """Images 1×1×3 whose pixels are their number and 0, 9: which image is it, is it mirrored?"""
    images = torch.zeros(count, 1, 1, 3, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    images[:, 0, 0, 1] = torch.arange(count)
    images[:, 0, 0, 2] = 200
    return images


def gray(x):
    return (x * 256).floor().to(torch.int64)


def take(count, images, batch_size, **options):
    return list(islice(data.batches(images, batch_size, **{"seed": 0} | options), count))


def which(batch):
    return gray(batch[1])[:, 0, 0, 1].tolist()


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (13, 4), (5, 5), (3, 1)])
def test_every_epoch_is_a_new_permutation(count, batch_size):
    per_epoch = count // batch_size
    taken = take(4 * per_epoch, numbered(count), batch_size)
    epochs = [
        [image for batch in taken[e * per_epoch :][:per_epoch] for image in which(batch)]
        for e in range(4)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == per_epoch * batch_size
        assert set(epoch) <= set(range(count))
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("start", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("flip", [False, True])
def test_starting_at_a_step_equals_skipping_to_it(start, flip):
    images = numbered(14)
    whole = take(start + 4, images, 4, flip=flip)[start:]
    resumed = take(4, images, 4, flip=flip, start=start)
    for (step, x, generator), (again, twin, other) in zip(whole, resumed, strict=True):
        assert step == again
        assert torch.equal(x, twin)
        assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=other))


def test_batches_do_not_depend_on_how_much_the_step_draws():
    images, seen = numbered(8), []
    for step, x, generator in islice(data.batches(images, 2, seed=0), 6):
        torch.randn(step * 10, generator=generator)
        torch.randn(5)
        seen.append(x)
    for x, (_, twin, _) in zip(seen, take(6, images, 2), strict=True):
        assert torch.equal(x, twin)


def test_seeds_give_other_orders_and_other_noise():
    images = numbered(64)
    first, second = (take(1, images, 64, seed=seed)[0] for seed in (0, 1))
    assert which(first) != which(second)
    assert not torch.equal(first[1].sort(0).values, second[1].sort(0).values)


def test_flips_happen_to_half_of_the_images_and_only_when_asked():
    images = numbered(100)
    assert all(gray(x)[:, 0, 0, 2].eq(200).all() for _, x, _ in take(10, images, 50))
    flipped = torch.cat(
        [gray(x)[:, 0, 0, 0].eq(200) for _, x, _ in take(20, images, 50, flip=True)]
    )
    assert float(flipped.double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)
    kept = torch.cat([gray(x)[:, 0, 0, 2].eq(200) for _, x, _ in take(20, images, 50, flip=True)])
    assert torch.equal(kept, ~flipped)


def test_batches_leave_the_images_alone():
    images = numbered(8)
    before = images.clone()
    take(5, images, 3, flip=True)
    assert torch.equal(images, before)


@pytest.mark.parametrize("batch_size", [0, -1, 9])
def test_batch_size_must_fit_the_data(batch_size):
    with pytest.raises(
        ValueError, match=f"between 1 and the number of images, 8; got {batch_size}"
    ):
        next(data.batches(numbered(8), batch_size, seed=0))
