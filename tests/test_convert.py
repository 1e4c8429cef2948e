"""Checkpoints of the authors' code: the same outputs from our network, and clear refusals."""

import argparse
import hashlib
import io
import os
import pickle

import numpy as np
import pytest
import torch
from plain import CondRefineNetDilated
from safetensors.torch import save_file
from torch import nn
from weights import randomized, relative_error

from ncsn_core import checkpoints, pretrained
from ncsn_core.convert import convert, from_authors, read_checkpoint
from ncsn_core.errors import CorruptFileError, NCSNError

# How `torch.save` wrote in 2019, and how it writes now.
FORMATS = pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])


def serialized(content, zipped=True):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def read_state(raw, name):
    return read_checkpoint(raw, name).state


def authors_file(path, reference, zipped=False):
    """Save as the authors do, after a step of Adam: the optimizer's state is a part of the file."""
    parallel = nn.DataParallel(reference)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=1e-3, betas=(0.9, 0.999))
    for parameter in parallel.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    states = [parallel.state_dict(), optimizer.state_dict()]
    path.write_bytes(serialized(states, zipped))
    return path


@pytest.fixture
def reference():
    return randomized(CondRefineNetDilated(4, 1, 3))


@pytest.fixture
def checkpoint(tmp_path, reference):
    return authors_file(tmp_path / "checkpoint_5000.pth", reference)


# --- the same network ---------------------------------------------------------------------------


def published_modules():
    """The names in the authors' `models/cond_refinenet_dilated.py`: convolutions, norms."""
    convs, norms = ["begin_conv", "end_conv"], ["normalizer"]
    for block in [f"res{stage}.{i}" for stage in (1, 2, 3, 4) for i in (0, 1)]:
        wrapper = ".conv" if block == "res2.0" else ""
        norms += [f"{block}.normalize1", f"{block}.normalize2"]
        convs += [f"{block}.conv1", f"{block}.conv2{wrapper}"]
        if block in ("res2.0", "res3.0", "res4.0"):
            convs.append(f"{block}.shortcut{wrapper}")
    four, two = ("1_1", "1_2", "2_1", "2_2"), ("1_1", "1_2")
    units = []
    for block, inputs in (("refine1", 1), ("refine2", 2), ("refine3", 2), ("refine4", 2)):
        units += [f"{block}.adapt_convs.{i}.{unit}" for i in range(inputs) for unit in four]
        last = (*four, "3_1", "3_2") if block == "refine4" else two
        units += [f"{block}.output_convs.{unit}" for unit in last]
        for part in ("crp", "msf") if inputs == 2 else ("crp",):
            norms += [f"{block}.{part}.norms.{i}" for i in (0, 1)]
            convs += [f"{block}.{part}.convs.{i}" for i in (0, 1)]
    return convs + [f"{unit}_conv" for unit in units], norms + [f"{unit}_norm" for unit in units]


def test_the_reference_network_has_the_published_names(reference):
    convs, norms = published_modules()
    assert (len(convs), len(norms)) == (75, 71)
    state = reference.state_dict()
    found = {name for name in state if not name.endswith(".bias")}
    assert found == {f"{c}.weight" for c in convs} | {f"{n}.embed.weight" for n in norms}
    assert state["refine3.msf.norms.1.embed.weight"].shape == (3, 3 * 8)


@pytest.mark.parametrize(
    ("channels", "image_channels", "preset", "levels"),
    [(4, 1, "mnist", 10), (8, 3, "cifar10", 10), (5, 1, "mnist", 3), (6, 3, "celeba", 3)],
)
def test_a_converted_checkpoint_gives_the_same_scores_at_every_level(
    tmp_path, channels, image_channels, preset, levels
):
    reference = randomized(CondRefineNetDilated(channels, image_channels, levels))
    source = authors_file(tmp_path / "checkpoint.pth", reference)
    convert(source, tmp_path / "ours", preset)

    record = pretrained.load(tmp_path / "ours")
    size = {"mnist": 28, "cifar10": 32, "celeba": 32}[preset]
    x = torch.rand(levels, image_channels, size, size)
    with torch.no_grad():
        expected = reference(x, torch.arange(levels))
        got = record.score()(x, record.sigmas)
    for level in range(levels):
        assert relative_error(got[level], expected[level]) < 1e-5


@FORMATS
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("listed", [True, False], ids=["list", "bare"])
def test_every_way_of_saving_gives_the_same_tensors(reference, zipped, prefix, listed):
    state = {prefix + name: tensor for name, tensor in reference.state_dict().items()}
    raw = serialized([state, {"state": {}}] if listed else state, zipped)
    found = read_state(raw, "checkpoint.pth")
    assert found.keys() == reference.state_dict().keys()
    assert all(torch.equal(found[name], t) for name, t in reference.state_dict().items())


def test_half_precision_becomes_float32(reference):
    half = {name: tensor.half() for name, tensor in reference.state_dict().items()}
    weights = from_authors(half)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert torch.equal(weights["end.bias"], half["end_conv.bias"].float())


def test_a_single_noise_level(tmp_path):
    """The thirds of a single row share its memory, and safetensors still writes three tensors."""
    source = authors_file(tmp_path / "one.pth", CondRefineNetDilated(2, 1, 1))
    record = convert(source, tmp_path / "ours", "mnist", sigma_max=0.01)
    assert record.sigmas.tolist() == pytest.approx([0.01])
    assert record.tensors()["norm.gamma"].shape == (1, 2)


# --- what the record says -----------------------------------------------------------------------


def test_the_record_says_what_is_known_and_no_more(tmp_path, checkpoint):
    record = convert(checkpoint, tmp_path / "ours", "mnist")
    assert record.kind == "ncsn"
    assert record.config == {
        "preset": "mnist",
        "dataset": "mnist",
        "image_channels": 1,
        "image_size": 28,
        "channels": 4,
        "levels": 3,
        "sigma_max": 1.0,
        "sigma_min": 0.01,
        "keep_means": True,
    }
    assert record.manifest["step"] is None
    assert record.metrics == record.history == {}
    assert record.provenance["converted_from"] == {
        "file": "checkpoint_5000.pth",
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    }
    assert str(tmp_path) not in (record.folder / checkpoints.MANIFEST).read_text()


def test_sizes_and_noise_may_differ_from_the_presets(tmp_path, checkpoint):
    record = convert(
        checkpoint, tmp_path / "ours", "mnist", image_size=14, sigma_max=2.0, sigma_min=0.5
    )
    assert record.sigmas.tolist() == pytest.approx([2.0, 1.0, 0.5])
    assert record.score()(torch.rand(1, 1, 14, 14), torch.tensor([2.0])).shape == (1, 1, 14, 14)


@pytest.mark.parametrize(("preset", "size"), [("mnist", 32), ("cifar10", 64), ("celeba", 142)])
def test_a_size_that_could_never_be_evaluated_is_refused(tmp_path, preset, size):
    channels = 1 if preset == "mnist" else 3
    source = authors_file(tmp_path / "checkpoint.pth", CondRefineNetDilated(2, channels, 3))
    with pytest.raises(ValueError, match=f"of {size} × {size} pixels could never be compared with"):
        convert(source, tmp_path / "ours", preset, image_size=size)
    assert not (tmp_path / "ours").exists()


def test_faces_of_64_pixels_are_cropped_at_their_size(tmp_path, monkeypatch):
    """ncsnv2's `ncsn_original.yml`: what is converted at 64 can be compared at 64."""
    from PIL import Image
    from torchvision import datasets

    from ncsn_core.data import load_images

    source = authors_file(tmp_path / "checkpoint.pth", CondRefineNetDilated(2, 3, 3))
    record = convert(source, tmp_path / "ours", "celeba", image_size=64)
    photograph = Image.new("RGB", (178, 218), "red")
    monkeypatch.setattr(datasets, "CelebA", lambda *a, **k: [(photograph, None)] * 3)
    sizes = [load_images("celeba", size=size).shape for size in (record.config["image_size"], 16)]
    assert sizes == [(3, 3, 64, 64), (3, 3, 16, 16)]


# --- whatever is around it ----------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize(
    "number", [5000, np.int64(5000), np.float32(5000), torch.tensor(5000), np.uint16(5000)]
)
def test_of_the_authors_later_list_the_averaged_weights_and_the_step_are_taken(
    tmp_path, reference, zipped, number
):
    raw = {f"module.{k}": t for k, t in CondRefineNetDilated(4, 1, 3).state_dict().items()}
    states = [raw, {"state": {}}, 7, number, dict(reference.state_dict())]
    source = tmp_path / "checkpoint.pth"
    source.write_bytes(serialized(states, zipped))
    record = convert(source, tmp_path / "ours", "mnist")
    assert torch.equal(record.tensors()["end.bias"], reference.state_dict()["end_conv.bias"])
    assert record.manifest["step"] == 5000
    origin = record.provenance["converted_from"]
    assert (origin["weights"], origin["averaged"]) == ("4", True)


@pytest.mark.parametrize("rest", [[], [{}]], ids=["four", "empty"])
def test_of_their_later_list_without_an_average_the_step_is_taken(reference, rest):
    state = dict(reference.state_dict())
    found = read_checkpoint(serialized([state, {"state": {}}, 7, 5000, *rest]), "x.pth")
    assert (found.step, found.averaged, found.place) == (5000, False, "")
    assert torch.equal(found.state["end_conv.bias"], state["end_conv.bias"])


def test_a_pickle_that_holds_itself_is_read_once(reference):
    content = {"model": dict(reference.state_dict())}
    content["self"] = content
    assert read_checkpoint(serialized(content), "x.pth").state.keys() == content["model"].keys()


def wrapped(state, prefix="", inner=""):
    return {prefix + k.replace("res1.0.", f"res1.0.{inner}"): t for k, t in state.items()}


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "score._orig_mod."],
)
def test_prefixes_of_wrappers_are_taken_off(reference, prefix):
    state = reference.state_dict()
    for inner in ("", "_orig_mod.", "module."):
        found = read_state(serialized(wrapped(state, prefix, inner)), "x.pth")
        assert found.keys() == state.keys()


@pytest.mark.parametrize(
    ("around", "place", "averaged"),
    [
        (lambda new, old: {"state_dict": new}, "state_dict", False),
        (lambda new, old: {"model_state_dict": new, "step": 9}, "model_state_dict", False),
        (lambda new, old: {"model": old, "ema": new}, "ema", True),
        (lambda new, old: {"ema": {"decay": 0.9, "shadow": new}, "model": old}, "ema/shadow", True),
        (lambda new, old: {"net": {"model": old, "model_ema": new}}, "net/model_ema", True),
        (
            lambda new, old: {"state_dict": wrapped(old, "net.") | wrapped(new, "net_ema.")},
            "state_dict/net_ema",
            True,
        ),
        (
            lambda new, old: {"model": old, "ema": {"shadow_params": list(new.values())}},
            "ema/shadow_params",
            True,
        ),
        (
            lambda new, old: wrapped(new, "module.") | {"n_averaged": torch.tensor(3)},
            "averaged",
            True,
        ),
    ],
)
def test_a_network_is_found_in_dictionaries_and_the_averaged_one_preferred(
    reference, around, place, averaged
):
    """`ema`, `shadow` and their like; an average without names is in the network's own order."""
    new, old = reference.state_dict(), CondRefineNetDilated(4, 1, 3).state_dict()
    found = read_checkpoint(serialized(around(dict(new), dict(old))), "x.pth")
    assert (found.place, found.averaged) == (place, averaged)
    assert found.state.keys() == new.keys()
    assert all(torch.equal(found.state[name], new[name]) for name in new)


def test_numbers_of_numpy_and_settings_beside_the_tensors_are_no_obstacle(reference):
    beside = {
        "fid": np.float64(25.3),
        "flag": np.bool_(True),
        "losses": np.arange(3.0),
        "names": np.array(["a", None], dtype=object),
        "args": argparse.Namespace(lr=1e-3),
        "global_step": np.int32(12),
    }
    found = read_checkpoint(serialized({"model": reference.state_dict(), **beside}), "x.pth")
    assert found.step == 12
    assert found.state.keys() == reference.state_dict().keys()


def test_a_forged_number_of_numpy_is_not_read_by_numpy(reference):
    """NumPy's own reader takes eight bytes for the address of an object, and follows it."""

    class Forged:
        def __reduce__(self):
            scalar = np.float64(0).__reduce__()[0]
            return scalar, (np.dtype("O"), b"\1" * 8)

    content = {"model": reference.state_dict(), "step": Forged()}
    assert read_checkpoint(serialized(content), "x.pth").step is None


def test_a_safetensors_file_of_their_tensors_is_read(tmp_path, reference):
    source = tmp_path / "model.safetensors"
    save_file(wrapped(reference.state_dict(), "module."), source)
    record = convert(source, tmp_path / "ours", "mnist")
    assert torch.equal(record.tensors()["end.bias"], reference.state_dict()["end_conv.bias"])
    with pytest.raises(CorruptFileError, match="'cut' is a truncated safetensors file"):
        read_state(source.read_bytes()[:-5], "cut")
    ours = next(record.folder.glob("*.safetensors"))
    with pytest.raises(CorruptFileError, match="is a network of ours already: name the folder"):
        convert(ours, tmp_path / "again", "mnist")


# --- inputs in other ranges ---------------------------------------------------------------------


class Rescaled(CondRefineNetDilated):
    """Of ncsnv2 under `rescaled: true`: the first convolution sees the images as they are."""

    def forward(self, x, y):
        return super().forward((x + 1) / 2, y)


@pytest.mark.parametrize(
    ("kind", "options", "low", "high"),
    [
        (CondRefineNetDilated, {"input_range": (-1.0, 1.0)}, -1, 1),
        (CondRefineNetDilated, {"input_range": (0.0, 255.0)}, 0, 255),
        (CondRefineNetDilated, {"input_range": (-0.5, 0.5)}, -0.5, 0.5),
        (Rescaled, {"rescaled": True}, -1, 1),
        (Rescaled, {"rescaled": True, "input_range": (0.0, 1.0)}, 0, 1),
    ],
)
def test_a_network_of_another_input_range_gives_the_score_of_pixels_in_0_1(
    tmp_path, kind, options, low, high
):
    """Of y = a + (b − a) x: σ_x = σ_y / (b − a), and s_x(x, σ_x) = (b − a) s_y(y, σ_y)."""
    reference = randomized(kind(4, 1, 3))
    source = authors_file(tmp_path / "checkpoint.pth", reference)
    sigma = {"sigma_max": 2.0 * (high - low), "sigma_min": 0.5 * (high - low)}
    record = convert(source, tmp_path / "ours", "mnist", **sigma, **options)
    assert record.sigmas.tolist() == pytest.approx([2.0, 1.0, 0.5])
    x = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        expected = (high - low) * reference(low + (high - low) * x, torch.arange(3))
        got = pretrained.load(record.folder).score()(x, record.sigmas)
    assert relative_error(got, expected) < 1e-5
    assert ("input_range" in record.config) == (low != -1 or kind is CondRefineNetDilated)


@pytest.mark.parametrize("wrong", [(1.0, 1.0), (1.0, -1.0), (0.0, float("nan"))])
def test_a_range_that_is_none_is_refused(tmp_path, checkpoint, wrong):
    with pytest.raises(ValueError, match="an input range goes from a smaller to a larger number"):
        convert(checkpoint, tmp_path / "ours", "mnist", input_range=wrong)


def test_training_can_start_from_a_converted_checkpoint(
    tmp_path, checkpoint, tiny_config, run_training, few_images
):
    record = convert(checkpoint, tmp_path / "ours", "mnist")
    config = tiny_config(channels=4, levels=3, steps=1, ema_decay=0.0, learning_rate=1e-12)
    run = run_training(config, tmp_path / "run", start_from=record)
    torch.testing.assert_close(run.tensors(), record.tensors())
    assert run.provenance["started_from"]["weights_sha256"] == record.weights_sha256


def test_a_checkpoint_is_not_overwritten(tmp_path, checkpoint, record):
    before = record.weights_sha256
    with pytest.raises(NCSNError, match="'model' already holds a checkpoint"):
        convert(checkpoint, record.folder, "mnist")
    assert pretrained.load(record.folder).weights_sha256 == before


# --- files that are refused ---------------------------------------------------------------------


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@FORMATS
def test_a_checkpoint_that_would_run_code_is_refused_before_it_does(tmp_path, zipped):
    content = [{"module.begin_conv.weight": torch.zeros(1)}, Bomb(tmp_path / "exploded")]
    source = tmp_path / "evil.pth"
    source.write_bytes(serialized(content, zipped))
    with pytest.raises(CorruptFileError, match=r"'evil.pth' was refused and not run.*mkdir"):
        convert(source, tmp_path / "ours", "mnist")
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "ours").exists()

    torch.load(source, weights_only=False)
    assert (tmp_path / "exploded").exists()  # it was no dud


@pytest.mark.parametrize(
    ("protocol", "says"), [(2, "was refused and not run"), (4, "not written by torch.save")]
)
def test_a_plain_pickle_is_refused_before_it_runs(tmp_path, protocol, says):
    raw = pickle.dumps(Bomb(tmp_path / "exploded"), protocol)
    with pytest.raises(CorruptFileError, match=f"'x.pth' .*{says}"):
        read_state(raw, "x.pth")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(raw)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"a text\n" * 40, pickle.dumps({"a": 1})],
    ids=["empty", "png", "text", "pickle"],
)
def test_what_torch_did_not_write_is_refused(raw):
    with pytest.raises(CorruptFileError, match=r"'x.pth' is truncated or was not written by torch"):
        read_state(raw, "x.pth")


@FORMATS
@pytest.mark.parametrize("part", [0.3, 0.95])
def test_a_truncated_file_is_refused(reference, zipped, part):
    raw = serialized([reference.state_dict(), {}], zipped)
    with pytest.raises(CorruptFileError, match=r"'x.pth' is truncated"):
        read_state(raw[: int(part * len(raw))], "x.pth")


@pytest.mark.parametrize("content", [5, [], [[]], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(2)])
def test_what_holds_no_network_is_refused(content):
    with pytest.raises(CorruptFileError, match=r"'x.pth' holds neither .* nor a state_dict"):
        read_state(serialized(content), "x.pth")


def test_missing_and_unexpected_tensors_are_named(reference):
    state = dict(reference.state_dict())
    for name in ("res2.0.conv2.conv.weight", "refine4.output_convs.3_2_conv.weight"):
        del state[name]
    extra = [f"res1.{i}.shortcut.weight" for i in range(5)]
    with pytest.raises(CorruptFileError) as caught:
        from_authors(state | dict.fromkeys(extra, torch.zeros(1)))
    message = str(caught.value)
    assert "missing refine4.output_convs.3_2_conv.weight, res2.0.conv2.conv.weight;" in message
    assert message.endswith(f"unexpected {', '.join(extra[:3])} and 2 more")

    with pytest.raises(CorruptFileError, match=r"and 170 more; unexpected none$"):
        from_authors({})


def test_another_network_of_theirs_is_refused(reference):
    """A prefix on some of the keys alone is no DataParallel's."""
    state = dict(reference.state_dict())
    state["module.end_conv.bias"] = state.pop("end_conv.bias")
    with pytest.raises(CorruptFileError, match=r"missing end_conv.bias; .* module.end_conv.bias$"):
        from_authors(read_state(serialized(state), "x.pth"))


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("res3.0.conv1.weight", (8, 8, 1, 1), r"conv1.weight is \(8, 8, 1, 1\) and not \(8, 8, 3"),
        ("refine2.crp.norms.0.embed.weight", (3, 16), r"is \(3, 16\) and not \(3, 24\)$"),
        ("refine2.crp.norms.0.embed.weight", (10, 24), r"is \(10, 24\) and not \(3, 24\)$"),
        ("end_conv.bias", (), r"end_conv.bias is \(\) and not \(1,\)$"),
        ("normalizer.embed.weight", (3, 15), r"is \(3, 15\) and not \(3, 12\)$"),
        ("normalizer.embed.weight", (5, 12), r"is \(3, 12\) and not \(5, 12\).* and 67 more$"),
        ("normalizer.embed.weight", (12,), "4 dimensions and normalizer.embed.weight 1"),
        ("begin_conv.weight", (4, 1), "begin_conv.weight has 2 dimensions"),
    ],
)
def test_shapes_that_do_not_fit_are_named(reference, name, shape, says):
    state = reference.state_dict() | {name: torch.zeros(shape)}
    with pytest.raises(CorruptFileError, match=says):
        from_authors(state)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": "cifar10"}, "images of 1 channels and those of preset 'cifar10' have 3"),
        ({"preset": "mnits"}, "unknown preset 'mnits'; known: mnist"),
        ({"image_size": 27}, "image_size must be even"),
        ({"sigma_max": 0.001}, "noise levels must decrease"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, checkpoint, options, says):
    with pytest.raises((NCSNError, ValueError), match=says):
        convert(checkpoint, tmp_path / "ours", **{"preset": "mnist"} | options)
    assert not (tmp_path / "ours").exists()


# --- the command --------------------------------------------------------------------------------


def test_convert_and_sample_on_the_command_line(ncsn, tmp_path):
    from PIL import Image

    source = authors_file(tmp_path / "checkpoint.pth", CondRefineNetDilated(2, 3, 3))
    ours = tmp_path / "ours"
    options = ["--preset", "celeba", "--image-size", 8, "--sigma-min", 0.1]
    code, out, err = ncsn("convert", source, ours, *options)
    assert (code, err) == (0, "")
    assert out == f"2 channels, 3 noise levels, in {ours}\n"
    assert pretrained.load(ours).config["sigma_min"] == 0.1

    image_file = tmp_path / "grid.png"
    options = ["--count", 4, "--steps", 1, "--out", image_file, "--device", "cpu"]
    code, _, err = ncsn("sample", ours, *options)
    assert code == 0, err
    with Image.open(image_file) as image:
        assert image.size == (2 * 10 + 2, 2 * 10 + 2)


def test_the_command_says_what_it_took_and_in_which_units(ncsn, tmp_path, reference):
    source, ours = tmp_path / "checkpoint.pth", tmp_path / "ours"
    state = reference.state_dict()
    source.write_bytes(serialized([state, {}, 1, 1200, dict(state)]))
    code, out, err = ncsn("convert", source, ours, "--preset", "mnist", "--input-range", -1, 1)
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == [
        "the averaged weights, which the file has at '4', were taken",
        "after 1,200 steps",
        "noise from 0.5 to 0.005, of pixels in [0, 1]",
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"no checkpoint", "not written by torch.save"), (b"", "truncated"), (None, "not run")],
)
def test_a_bad_file_ends_with_one_line(ncsn, tmp_path, content, says):
    source = tmp_path / "bad.pth"
    source.write_bytes(pickle.dumps(Bomb(tmp_path / "x"), 2) if content is None else content)
    code, out, err = ncsn("convert", source, tmp_path / "ours", "--preset", "mnist")
    assert (code, out) == (1, "")
    assert err.startswith("ncsn: 'bad.pth'")
    assert err.count("\n") == 1
    assert says in err


def test_the_command_asks_for_file_and_preset(ncsn, tmp_path, checkpoint):
    code, _, err = ncsn("convert", tmp_path / "nowhere.pth", tmp_path / "ours", "--preset", "mnist")
    assert code == 2
    assert "does not exist" in err
    code, _, err = ncsn("convert", checkpoint, tmp_path / "ours")
    assert code == 2
    assert "--preset" in err
