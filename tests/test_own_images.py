"""Images that people bring: ranges, shapes, folders, files of arrays."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scores import without_type_checks

from ncsn_core import data
from ncsn_core.data import as_images, read_images
from ncsn_core.errors import CorruptFileError, MissingDataError, NCSNError

GRAY = torch.arange(2 * 36, dtype=torch.uint8).reshape(2, 1, 6, 6) * 3
COLOR = torch.randint(256, (2, 3, 6, 6), generator=torch.Generator().manual_seed(0)).byte()

# --- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        GRAY.long(),
        GRAY.to(torch.int16),
        GRAY.numpy(),
        GRAY.numpy().astype(">u2"),
        GRAY.numpy().astype(np.uint32),
        GRAY[:, 0],
        GRAY.movedim(1, 3),
        [image.numpy() for image in GRAY],
        list(GRAY),
        [Image.fromarray(image[0].numpy()) for image in GRAY],
        GRAY.numpy()[::-1][::-1],
    ],
)
def test_bytes_of_any_origin_are_the_same_images(given):
    images = as_images(given)
    assert images.dtype == torch.uint8
    assert torch.equal(images, GRAY)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_any_precision_are_in_the_unit_interval(dtype):
    images = as_images((COLOR.numpy() / 255).astype(dtype).transpose(0, 2, 3, 1))
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, data.to_unit(COLOR), atol=5e-4, rtol=0)


def test_a_little_noise_is_clipped_as_a_screen_would():
    noisy = data.to_unit(GRAY) + 0.05 * torch.randn(GRAY.shape)
    assert torch.equal(as_images(noisy), noisy.clamp(0, 1))


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (2 * COLOR / 255 - 1, r"\(x \+ 1\) / 2"),
        (COLOR.float(), "divide by 255"),
        (COLOR.float() * 257, "divide by 65535"),
        ((COLOR / 255 - 0.45) / 0.22, "undo their normalization"),
        (COLOR / 100, r"clamp\(0, 1\)"),
        (COLOR / 255 - 0.5, r"clamp\(0, 1\)"),
        (COLOR.int() * 257, "16 bit become 8"),
        (COLOR.int() - 128, "bytes, 0…255"),
        ((COLOR > 128).long(), "only 0 and 1"),
        (torch.full((1, 1, 4, 4), float("nan")), "NaN"),
        (torch.full((1, 1, 4, 4), float("inf")), "NaN or inf"),
        (COLOR / 255 + 0j, "complex"),
        (torch.rand(3, 5, 5), "one color image or three gray"),
        (torch.rand(2, 2, 5, 5), "1 or 3 channels"),
        (torch.rand(5), "have the shape"),
        (torch.cat([COLOR, COLOR[:, :1]], 1), "transparent"),
        (["a", "b"], "no images"),
        ([torch.rand(1, 4, 4), torch.rand(1, 5, 5)], "of one shape"),
        (7, "no images"),
    ],
)
def test_another_range_or_shape_is_refused_with_how_to_convert(given, advice):
    with without_type_checks(), pytest.raises(ValueError, match=advice):
        as_images(given)


def test_gray_in_three_channels_is_gray_and_colors_are_not():
    three = GRAY.expand(-1, 3, -1, -1)
    assert torch.equal(as_images(three, channels=1), GRAY)
    assert torch.equal(as_images(GRAY, channels=3), three)
    assert torch.equal(as_images(GRAY > 60), (GRAY > 60).byte() * 255)
    opaque = torch.cat([COLOR, torch.full_like(COLOR[:, :1], 255)], 1)
    assert torch.equal(as_images(opaque.movedim(1, 3)), COLOR)
    with pytest.raises(ValueError, match="gray ones are needed"):
        as_images(COLOR, channels=1)


def test_single_images_are_sets_of_one():
    assert as_images(GRAY[0, 0]).shape == (1, 1, 6, 6)
    assert as_images(GRAY[0]).shape == (1, 1, 6, 6)
    assert torch.equal(as_images(COLOR[0].movedim(0, 2)), COLOR[:1])


def test_conversions_take_what_they_say_and_nothing_else():
    assert torch.equal(data.to_bytes(GRAY), GRAY)
    assert torch.equal(data.to_unit(GRAY / 255), GRAY / 255)
    assert data.to_bytes(torch.tensor([float("nan"), -9.0, 9.0])).tolist() == [0, 0, 255]
    with without_type_checks(), pytest.raises(ValueError, match="only bytes are dequantized"):
        data.dequantize(GRAY / 255)
    with pytest.raises(ValueError, match="divide by 255"):
        data.to_unit(GRAY.float())


# --- folders -----------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """A folder such as people have: each readable image shows the gray level of its name."""
    folder = tmp_path / "pictures"
    (folder / "below" / ".hidden").mkdir(parents=True)

    def solid(mode, color, size=(8, 8)):
        return Image.new(mode, size, color)

    solid("L", 10).save(folder / "010.png")
    solid("RGB", (20, 20, 20), (12, 8)).save(folder / "020.png")
    solid("RGBA", (0, 0, 0, 225)).save(folder / "030.png")  # 30 gray of the white below
    solid("P", 0).save(folder / "000.png")
    Image.fromarray(np.full((8, 8), 40 * 257, np.uint16)).save(folder / "040.png")
    solid("RGB", (50, 50, 50), (16, 16)).save(folder / "below" / "050.bmp")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(
        whole, "png"
    )
    (folder / "broken.png").write_bytes(whole.getvalue()[:1000])
    (folder / "notes.txt").write_text("not an image")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    solid("L", 99).save(folder / "below" / ".hidden" / "a.png")
    frames = [solid("L", 1), solid("L", 200)]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    return folder


def test_a_folder_of_all_modes_is_read_on_purpose_and_what_is_left_out_is_named(pictures):
    found = read_images(pictures, size=4)
    assert found.images.shape == (6, 1, 4, 4), found.notes
    assert found.images[:, 0, 2, 2].tolist() == [0, 10, 20, 30, 40, 50]
    assert found.source == str(pictures)
    notes = "\n".join(found.notes)
    assert "1 image of 16 bit scaled to 8" in notes
    assert "1 image with transparent pixels laid on white" in notes
    assert "1 image cropped to their central square" in notes
    assert "of mode P converted" in notes
    assert "5 files left out" in notes
    for name in ("broken.png (cannot be read", "notes.txt (no image)", ".DS_Store (hidden)"):
        assert name in notes
    assert "moves.gif (several frames)" in notes
    assert read_images(pictures, size=4, channels=3).images.shape == (6, 3, 4, 4)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    upright = np.zeros((8, 8), np.uint8)
    upright[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for i in range(2):
        turned = Image.fromarray(np.rot90(upright))
        turned.save(tmp_path / f"{i}.png", exif=exif)
    assert np.array_equal(read_images(tmp_path).images[0, 0], upright)


def test_shrinking_averages_and_keeps_the_middle(tmp_path):
    stripes = np.zeros((32, 48), np.uint8)
    stripes[:, ::2] = 255
    stripes[:, :8] = 0
    stripes[:, 40:] = 0
    for i in range(2):
        Image.fromarray(stripes).save(tmp_path / f"{i}.png")
    middle = read_images(tmp_path, size=8).images[0, 0, 1:-1, 1:-1].int()
    assert (middle - 128).abs().max() < 20  # every second pixel would be black or white


def test_images_of_several_sizes_need_one(pictures):
    with pytest.raises(NCSNError, match=r"3 shapes, from 8 × 8 to 16 × 16 pixels: .*--size"):
        read_images(pictures)


def test_a_folder_without_two_images_says_what_it_holds(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NCSNError, match="fewer than two images"):
        read_images(tmp_path / "empty")
    for path in pictures.glob("0*.png"):
        path.unlink()
    with pytest.raises(NCSNError, match=r"fewer than two .*5 files left out: .*\.DS_Store"):
        read_images(pictures)


# --- files of arrays ---------------------------------------------------------------------------


def test_files_of_arrays_in_either_layout(tmp_path):
    np.save(tmp_path / "a.npy", COLOR.movedim(1, 3).numpy())
    np.savez(tmp_path / "b.npz", images=COLOR.numpy().astype(np.int64), labels=np.arange(2))
    torch.save(COLOR / 255, tmp_path / "c.pt")
    np.save(tmp_path / "d.npy", COLOR.numpy().astype(np.uint16) * 257)
    for name in ("a.npy", "b.npz", "c.pt", "d.npy"):
        assert torch.equal(read_images(tmp_path / name).images, COLOR), name
    assert read_images(tmp_path / "d.npy").notes == ("2 images of 16 bit scaled to 8",)


def test_an_array_with_transparent_pixels_is_laid_on_white():
    half = torch.full((2, 4, 5, 5), 0, dtype=torch.uint8)
    half[0, 3] = 205
    half[1, 3] = 255
    found = read_images(half)
    assert found.images[:, 0, 0, 0].tolist() == [50, 0]
    assert found.notes == ("1 image with transparent pixels laid on white",)


def test_a_file_that_holds_no_images_says_so(tmp_path):
    np.savez(tmp_path / "two.npz", a=COLOR.numpy(), b=COLOR.numpy())
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:100])
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(NCSNError, match="holds a, b: which are the images"):
        read_images(tmp_path / "two.npz")
    for name in ("objects.npy", "cut.npz"):
        with pytest.raises(CorruptFileError, match="cannot be read as a file of numbers"):
            read_images(tmp_path / name)
    with pytest.raises(NCSNError, match="holds fewer than two images"):
        read_images(tmp_path / "one.png")
    with pytest.raises(MissingDataError, match="no file or folder"):
        read_images(tmp_path / "nowhere")


def test_a_tenth_is_held_out_whatever_the_order():
    images = torch.randint(256, (40, 1, 4, 4)).byte()
    train, held_out = read_images(images).split()
    assert (len(train), len(held_out)) == (36, 4)
    _, again = read_images(images.flip(0)).split()
    assert torch.equal(again.flip(0), held_out)


# --- what others tried on it ----------------------------------------------------------------------


def save_png(path, pixels, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint16 if mode == "I;16" else np.uint8)).save(path)
    return path


@pytest.mark.parametrize(("mode", "most"), [("L", 1), ("I;16", 255), ("I;16", 4080)])
def test_pixels_in_a_small_part_of_their_range_are_refused_in_files_too(tmp_path, mode, most):
    pixels = np.random.default_rng(0).integers(0, most + 1, (4, 8, 8))
    for i, image in enumerate(pixels):
        save_png(tmp_path / f"{i}.png", image, mode)
    with pytest.raises(NCSNError, match="two blacks" if most == 1 else "less than a quarter"):
        read_images(tmp_path)


def test_one_picture_and_a_list_of_paths_are_read(tmp_path):
    files = [save_png(tmp_path / f"{i}.png", np.full((6, 6), 100 * i)) for i in (1, 2)]
    assert read_images(files[0], fewest=1).images.flatten().unique().tolist() == [100]
    assert read_images(files).images.shape == (2, 1, 6, 6)
    with pytest.raises(NCSNError, match="fewer than two"):
        read_images(files[0])


def test_arrays_with_their_count_last_or_flat_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="moveaxis"):
        read_images(np.zeros((28, 28, 400), np.uint8))
    with pytest.raises(NCSNError, match=r"reshape\(-1, 28, 28\)"):
        read_images(np.full((400, 784), 7, np.uint8))
