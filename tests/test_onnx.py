"""A score as an ONNX file: what another program computes from it, and what it says of itself."""

import json

import numpy as np
import pytest
import torch

from ncsn_core import checkpoints, pretrained
from ncsn_core.errors import NCSNError
from ncsn_core.onnx import export_onnx

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
NAMES = [name for name in pretrained.available("ncsn") if name != "mnist14_energy"]


def opened(file):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def scores(session, x, sigma):
    return torch.from_numpy(session.run(None, {"x": x.numpy(), "sigma": sigma.numpy()})[0])


def relative_errors(got, expected):
    """Of each image by itself: the scores of small noise are a hundred times larger."""
    return (got - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_file_gives_the_scores_of_pytorch_at_every_level_and_batch_size(tmp_path, name):
    score = pretrained.load(name).score()
    session = opened(export_onnx(pretrained.load(name), tmp_path))
    for count in (len(score.sigmas), 1):
        x = torch.rand(count, *score.image_shape) + 0.3 * torch.randn(count, *score.image_shape)
        sigma = score.sigmas[:count]
        with torch.no_grad():
            expected = score(x, sigma)
        assert relative_errors(scores(session, x, sigma), expected).max() < 1e-5


def test_between_two_levels_a_network_of_all_sigmas_is_the_same(tmp_path):
    score = pretrained.load("mnist14_continuous").score()
    session = opened(export_onnx(pretrained.load("mnist14_continuous"), tmp_path))
    x, sigma = torch.rand(3, *score.image_shape), torch.tensor([0.012, 0.5, 7.9])
    with torch.no_grad():
        expected = score(x, sigma)
    assert relative_errors(scores(session, x, sigma), expected).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "strange"),
    [("mnist14_ncsn", [1.01, 0.5, 0.009, -1.0]), ("mnist14_continuous", [8.1, 0.009, 0.0, -1.0])],
)
def test_at_a_sigma_that_the_network_does_not_know_the_score_is_not_a_number(
    tmp_path, name, strange
):
    session = opened(export_onnx(pretrained.load(name), tmp_path))
    sigma = torch.tensor([*strange, float("nan"), 1.0])
    found = scores(session, torch.rand(6, 1, 14, 14), sigma)
    assert found[:-1].isnan().all()
    assert found[-1].isfinite().all()


def test_a_network_converted_from_another_input_range_keeps_its_range(tmp_path, record):
    config = record.config | {"input_range": [-1.0, 1.0]}
    weights = {"weights": record.tensors()}
    other = checkpoints.save(tmp_path / "other", weights, kind="ncsn", config=config)
    x = torch.rand(2, *pretrained.model(record).score().image_shape)
    for found in (record, other):
        score = pretrained.model(found).score()
        sigma = score.sigmas[[0, -1]]
        session = opened(export_onnx(pretrained.model(found), tmp_path / found.name))
        errors = relative_errors(scores(session, x, sigma), score(x, sigma))
        assert errors.max() < 1e-5


def test_the_file_is_small_and_says_what_it_is(tmp_path):
    model = pretrained.load("mnist")
    file = export_onnx(model, tmp_path)
    assert file.name == f"mnist-{model.weights_sha256[:12]}.onnx"
    assert file.stat().st_size < 3e6
    said = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert np.array_equal(np.float32(json.loads(said["sigmas"])), model.sigmas.numpy())
    assert json.loads(said["image_shape"]) == [1, 28, 28]
    assert said["weights_sha256"] == model.weights_sha256


def test_a_file_that_is_there_is_left_unless_it_was_made_of_something_else(tmp_path):
    model = pretrained.load("mnist14_ncsn")
    file = export_onnx(model, tmp_path)
    before = file.stat().st_mtime_ns
    assert export_onnx(model, tmp_path).stat().st_mtime_ns == before
    manifest = model.manifest | {"config": model.config | {"sigma_max": 2.0}}
    export_onnx(pretrained.Model(model.folder, manifest), tmp_path)
    said = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert json.loads(said["sigmas"])[0] == 2.0


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    with pytest.raises(NCSNError, match="'mnist14_energy' is an energy"):
        export_onnx(pretrained.load("mnist14_energy"), tmp_path)
    with pytest.raises(NCSNError, match="of kind 'classifier' and not 'ncsn'"):
        export_onnx(pretrained.load("digit_classifier"), tmp_path)


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("ncsn_core.onnx.find_spec", lambda name: None)
    with pytest.raises(NCSNError, match=r"onnx is missing: pip install 'ncsn-core\[onnx\]'"):
        export_onnx(pretrained.load("mnist14_ncsn"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_one_file(ncsn, tmp_path):
    code, out, err = ncsn("export", "mnist14_ncsn", tmp_path / "web", "--onnx")
    assert (code, err) == (0, "")
    (file,) = (tmp_path / "web").iterdir()
    assert out == f"mnist14_ncsn: {file.stat().st_size / 2**20:.1f} MiB in {file}\n"
    code, _, err = ncsn("export", "mnist14_ncsn", tmp_path / "web", "--onnx", "--half")
    assert code == 1
    assert "--onnx writes float32 and one file" in err
