"""Records on disk: what is written is what is read, whatever happens in between."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from ncsn_core import checkpoints, networks, pretrained
from ncsn_core.checkpoints import MANIFEST
from ncsn_core.errors import CorruptFileError, NCSNError, UnknownNameError
from ncsn_core.metrics.classifier import Classifier
from ncsn_core.networks import RefineNet
from ncsn_core.pretrained import RESULTS
from ncsn_core.schedules import geometric_ladder

OLD = {"weights": {"a": torch.arange(6.0).reshape(2, 3)}}
NEW = {"weights": {"a": torch.ones(4)}, "state": {"b": torch.zeros(2)}}


@pytest.fixture
def folder(tmp_path):
    """A small record, OLD, in a folder."""
    checkpoints.save(tmp_path / "record", OLD, kind="bundle", step=1)
    return tmp_path / "record"


def weights_file(record):
    return record.folder / record.manifest["files"]["weights"]["name"]


def edit_manifest(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    manifest["sha256"] = checkpoints.manifest_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def holds_old_record(folder):
    record = pretrained.load(folder)
    return record.manifest["step"] == 1 and torch.equal(record.tensors()["a"], OLD["weights"]["a"])


# --- round trip --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool]
)
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    tensors = {"x": torch.randint(2, (3, 4)).to(dtype), "scalar": torch.ones((), dtype=dtype)}
    checkpoints.save(tmp_path / "r", {"weights": tensors}, kind="bundle")
    back = pretrained.load(tmp_path / "r").tensors()
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor)


def test_a_record_remembers_what_is_known_about_it(record):
    found = pretrained.load(record.folder)
    assert found == record
    assert (found.name, found.kind) == ("model", "ncsn")
    assert found.config["channels"] == 2
    assert found.metrics == {"loss": {"value": 1.5, "images": 10}}
    assert found.history == {"step": [1, 2], "loss": [392.0, 391.5]}
    assert found.provenance == {"seed": 0}
    assert torch.equal(found.sigmas, geometric_ladder())


def test_views_and_other_memory_formats_can_be_saved(tmp_path):
    image = torch.rand(2, 3, 4, 4)
    tensors = {"last": image.to(memory_format=torch.channels_last), "view": image[:, :1]}
    back = checkpoints.save(tmp_path / "r", {"weights": tensors}, kind="bundle").tensors()
    assert torch.equal(back["last"], image)
    assert torch.equal(back["view"], image[:, :1])


def test_loading_a_path_as_text(folder):
    assert holds_old_record(str(folder))


def test_score_is_the_network_with_the_saved_weights(record):
    score = pretrained.load(record.folder).score()
    network = networks.build_network(record.config)
    network.load_state_dict(record.tensors())
    x, sigma = torch.rand(2, 1, 28, 28), geometric_ladder()[[0, 9]]
    with torch.no_grad():
        expected = network(x, torch.tensor([0, 9]))
    torch.testing.assert_close(score(x, sigma), expected, rtol=1e-4, atol=1e-4)
    assert not score.training
    assert not any(p.requires_grad for p in score.parameters())


def test_half_precision_weights_are_computed_with_in_float32(record):
    half = {name: tensor.bfloat16() for name, tensor in record.tensors().items()}
    manifest = {k: v for k, v in record.manifest.items() if k not in ("files", "format")}
    small = checkpoints.save(record.folder, {"weights": half}, **manifest)
    assert {p.dtype for p in pretrained.model(small).score().parameters()} == {torch.float32}


def test_normalizations_are_compiled_on_demand_and_never_for_an_energy(monkeypatch):
    asked = []
    monkeypatch.setattr(
        RefineNet, "compile_normalizations", lambda _, compiled: asked.append(compiled)
    )
    record = pretrained.load("mnist14_ncsn")
    record.score()
    record.score(compile=True)
    pretrained.load("mnist14_energy").score(compile=True)
    pretrained.load("mnist14_continuous").score(compile=True)
    assert asked == [False, True, False, True]


def test_a_manifest_names_its_format(tmp_path):
    record = checkpoints.save(tmp_path / "r", OLD, kind="bundle")
    assert record.manifest["format"] == 3


def in_format_2(folder):
    """Write a record's manifest as it was before some names changed."""
    old = {"sigma_max": "sigma_first", "sigma_min": "sigma_last", "compiled": "fused"}
    manifest = json.loads((folder / MANIFEST).read_text())

    def renamed(found):
        return {old.get(name, name): value for name, value in found.items()}

    manifest["config"] = renamed(manifest["config"])
    manifest["provenance"] = renamed(manifest["provenance"])
    sessions = manifest["provenance"].get("sessions", [])
    if sessions:
        manifest["provenance"]["sessions"] = [renamed(session) for session in sessions]
    manifest["format"] = 2
    manifest["sha256"] = checkpoints.manifest_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return manifest


@pytest.mark.parametrize("name", ["mnist14_ncsn", "mnist14_energy", "mnist14_continuous"])
def test_a_network_of_format_2_answers_as_today(tmp_path, name):
    folder = shutil.copytree(pretrained.MODELS / name, tmp_path / name)
    assert "sigma_first" in in_format_2(folder)["config"]
    old, new = pretrained.load(folder), pretrained.load(name)
    assert old.manifest == new.manifest
    x = torch.rand(2, 1, 14, 14)
    scores = [model.score()(x, model.sigmas[[0, -1]]) for model in (old, new)]
    assert torch.equal(*scores)


def test_an_unfinished_run_of_format_2_goes_on_as_one_of_today(
    tmp_path, tiny_config, run_training, few_images
):
    config = tiny_config(steps=4, image_size=14)
    whole = run_training(config, tmp_path / "whole")
    run_training(config, tmp_path / "old", minutes=0.0)
    assert "fused" in in_format_2(tmp_path / "old")["provenance"]["sessions"][0]
    old = run_training(config, tmp_path / "old")
    assert old.weights_sha256 == whole.weights_sha256
    assert old.history == whole.history
    assert old.sessions == whole.sessions
    assert json.loads((tmp_path / "old" / MANIFEST).read_text())["format"] == 3


def test_classifier_is_the_network_with_the_saved_weights(tmp_path):
    network = Classifier().eval()
    saved = checkpoints.save(
        tmp_path / "digits", {"weights": network.state_dict()}, kind="classifier"
    )
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(pretrained.model(saved).classifier()(x), network(x))
    assert not pretrained.model(saved).classifier().training


def test_no_pickle(record):
    """A safetensors file starts with the length of a JSON header; nothing in it is executed."""
    raw = weights_file(record).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert header["begin.weight"]["dtype"] == "F32"
    assert {path.suffix for path in record.folder.iterdir()} == {".json", ".safetensors"}


def test_an_odd_number_cannot_be_written_as_json(tmp_path):
    """NaN is no JSON; other readers would refuse the manifest."""
    with pytest.raises(ValueError, match="JSON"):
        checkpoints.save(tmp_path / "r", OLD, kind="bundle", metrics={"fid": float("nan")})


# --- replacing a record ------------------------------------------------------------------------


def test_a_new_record_replaces_the_old_one_and_its_files(folder):
    checkpoints.save(folder, NEW, kind="bundle", step=2)
    record = pretrained.load(folder)
    assert record.manifest["step"] == 2
    assert record.tensors().keys() == {"a"}
    listed = {entry["name"] for entry in record.manifest["files"].values()}
    assert {path.name for path in folder.iterdir()} == listed | {MANIFEST}


def test_saving_the_same_again_changes_nothing(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    checkpoints.save(folder, OLD, kind="bundle", step=1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_only_what_the_old_manifest_lists_is_deleted(folder):
    old = weights_file(pretrained.load(folder))
    mine = [folder / "mine.safetensors", folder / "weights-0123456789ab.safetensors"]
    for path in mine:
        path.write_bytes(b"mine")
    checkpoints.save(folder, NEW, kind="bundle", step=2)
    assert not old.exists()
    assert all(path.read_bytes() == b"mine" for path in mine)


def test_a_manifest_that_lists_another_programs_file_does_not_delete_it(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["weights"]["name"] = "thesis.safetensors"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / "thesis.safetensors").write_bytes(b"mine")
    checkpoints.save(folder, NEW, kind="bundle", step=2)
    assert (folder / "thesis.safetensors").read_bytes() == b"mine"


def models_of_somebody(folder):
    (folder / "sd_xl_base.safetensors").write_bytes(b"six gigabytes")


def a_web_application(folder):
    (folder / MANIFEST).write_text('{"name": "app", "icons": []}')


def a_project(folder):
    (folder / "src").mkdir()


FOREIGN = [models_of_somebody, a_web_application, a_project]


@pytest.mark.parametrize("fill", FOREIGN)
def test_a_folder_of_other_files_is_refused_and_left_as_it_is(tmp_path, fill):
    folder = tmp_path / "theirs"
    folder.mkdir()
    fill(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(NCSNError, match=r"theirs holds .*choose a new or an empty folder"):
        checkpoints.save(folder, NEW, kind="bundle")
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(NCSNError, match="is a file: name a folder"):
        checkpoints.save(Path(__file__), NEW, kind="bundle")


def test_hidden_files_and_a_save_that_was_killed_are_in_nobodys_way(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "weights-0123456789ab.safetensors").write_bytes(b"of a killed process")
    checkpoints.save(tmp_path, OLD, kind="bundle")
    assert pretrained.load(tmp_path).tensors().keys() == {"a"}


@pytest.mark.parametrize("crash_at", ["weights", "state", MANIFEST])
def test_a_crash_between_files_leaves_the_old_record(folder, monkeypatch, crash_at):
    replace = Path.replace

    def crash(self, target):
        if Path(target).name.startswith(crash_at):
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(folder, NEW, kind="bundle", step=2)
    monkeypatch.undo()
    assert holds_old_record(folder)
    assert not list(folder.glob("*.tmp"))
    assert not list(folder.glob(".*"))

    checkpoints.save(folder, NEW, kind="bundle", step=2)  # and the next attempt cleans up
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("full_from", [0, 1, 2], ids=["weights", "state", "manifest"])
def test_a_full_disk_keeps_the_old_record_and_leaves_no_half_file(folder, monkeypatch, full_from):
    written = []

    def fsync(descriptor):
        written.append(descriptor)
        if len(written) > full_from:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(folder, NEW, kind="bundle", step=2)
    monkeypatch.undo()
    assert holds_old_record(folder)
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 5, 100, -1])
def test_a_flipped_bit_is_noticed(record, position):
    path = weights_file(record)
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptFileError, match=rf"{path.name} of record 'model' is truncated or a"):
        pretrained.load(record.folder).score()


def test_a_number_that_changes_in_the_manifest_is_noticed(record):
    """The ladder, say, which would otherwise be another one without a word."""
    path = record.folder / MANIFEST
    text = path.read_text(encoding="utf-8")
    assert text.count('"sigma_max": 1.0') == 1
    path.write_text(text.replace('"sigma_max": 1.0', '"sigma_max": 9.0'), encoding="utf-8")
    with pytest.raises(CorruptFileError, match="was altered"):
        pretrained.load(record.folder)


@pytest.mark.parametrize("kept", [0, 7, 1000, -1])
def test_a_truncated_file_is_noticed(record, kept):
    path = weights_file(record)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptFileError, match=r"truncated or altered: .* bytes"):
        pretrained.load(record.folder).tensors()


def test_a_missing_file_is_named(record):
    weights_file(record).unlink()
    with pytest.raises(CorruptFileError, match=f"{weights_file(record).name} .* cannot be read"):
        pretrained.load(record.folder).tensors()


def test_a_file_that_is_not_safetensors(record):
    """Even with a matching hash: somebody wrote both."""
    path = weights_file(record)
    path.write_bytes(b"not tensors at all")
    digest = checkpoints.hashlib.sha256(b"not tensors at all").hexdigest()
    edit_manifest(record.folder, lambda m: m["files"]["weights"].update(sha256=digest))
    with pytest.raises(CorruptFileError, match="not a safetensors file"):
        pretrained.load(record.folder).tensors()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"kind": "ncsn"}',
        '{"files": {}}',
        '{"kind": 3, "files": {}}',
        '{"kind": "ncsn", "files": []}',
        "\udcff",
    ],
)
def test_a_damaged_manifest(folder, text):
    (folder / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CorruptFileError, match=r"manifest\.json of record 'record'"):
        pretrained.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"]["weights"].pop("name"),
        lambda m: m["files"]["weights"].pop("sha256"),
        lambda m: m["files"].update(weights="weights.safetensors"),
        lambda m: m["config"].pop("channels"),
        lambda m: m["config"].pop("sigma_min"),
        lambda m: m.pop("config"),
    ],
    ids=["no name", "no hash", "no entry", "no channels", "no sigma_min", "no config"],
)
def test_an_incomplete_manifest_is_corrupt_and_not_a_key_error(record, change):
    edit_manifest(record.folder, change)
    with pytest.raises(CorruptFileError, match="model"):
        pretrained.load(record.folder).score()


@pytest.mark.parametrize("change", [{"channels": 3}, {"keep_means": False}, {"levels": 9}])
def test_weights_that_do_not_fit_the_configuration(record, change):
    edit_manifest(record.folder, lambda m: m["config"].update(change))
    with pytest.raises(CorruptFileError, match="weights of 'model' do not fit its configuration"):
        pretrained.load(record.folder).score()


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnits", "no/such/folder"])
def test_an_unknown_checkpoint_lists_the_shipped_ones(name):
    with pytest.raises(UnknownNameError) as caught:
        pretrained.load(name)
    message = str(caught.value)
    assert f"unknown checkpoint '{name}'; known: " in message
    assert all(shipped in message for shipped in pretrained.available("ncsn"))
    assert not any(other in message for other in pretrained.available("classifier"))
    assert "manifest.json" in message


def test_a_file_in_the_place_of_a_checkpoint_is_told_what_to_do_with(tmp_path, record):
    single = tmp_path / "checkpoint.pth"
    single.write_bytes(b"")
    with pytest.raises(NCSNError, match=r"checkpoint.pth is a single file.*by ncsn convert "):
        pretrained.load(single)
    for part in record.folder.iterdir():
        with pytest.raises(NCSNError, match=f"name its folder, {record.folder}$"):
            pretrained.load(part)


def test_a_folder_of_checkpoints_lists_them(record):
    with pytest.raises(UnknownNameError, match=f"the folder holds .*{record.name}.*: name one"):
        pretrained.load(record.folder.parent)


def test_an_unknown_part_lists_the_parts(record):
    with pytest.raises(UnknownNameError, match="'gradients'; known: weights, state"):
        record.tensors("gradients")


def test_a_record_without_weights_has_no_hash_of_them(tmp_path):
    curves = checkpoints.save(tmp_path / "r", {"curves": {"a": torch.zeros(2)}}, kind="results")
    with pytest.raises(UnknownNameError, match="part of this record 'weights'; known: curves"):
        curves.weights_sha256  # noqa: B018


def test_an_ncsn_is_no_classifier_and_a_classifier_no_ncsn(record, tmp_path):
    with pytest.raises(NCSNError, match="'model' is a record of kind 'ncsn' and not 'classifier'"):
        record.classifier()
    digits = checkpoints.save(tmp_path / "digits", OLD, kind="classifier")
    with pytest.raises(NCSNError, match="kind 'classifier' and not 'ncsn', as fashion_mnist, "):
        pretrained.model(digits).score()


def test_available_lists_shipped_records_by_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "MODELS", tmp_path)
    assert pretrained.available() == ()
    for name, kind in (("b", "ncsn"), ("a", "classifier"), ("c", "ncsn")):
        checkpoints.save(tmp_path / name, OLD, kind=kind)
    (tmp_path / "empty").mkdir()
    assert pretrained.available() == ("a", "b", "c")
    assert pretrained.available("ncsn") == ("b", "c")
    assert pretrained.load("b").folder == tmp_path / "b"


# --- export and bundles ------------------------------------------------------------------------


def test_export_leaves_the_training_state_out(record, tmp_path):
    exported = checkpoints.export(record, tmp_path / "shipped", metrics={"fid": 3.0})
    assert exported.manifest["files"].keys() == {"weights"}
    assert exported.metrics == {"fid": 3.0}
    assert exported.weights_sha256 == record.weights_sha256
    assert exported.config == record.config
    assert exported.history == record.history
    assert len(list((tmp_path / "shipped").iterdir())) == 2
    assert "state" in pretrained.load(record.folder).manifest["files"]  # the original stays


def test_export_in_half_precision(record, tmp_path):
    half = pretrained.model(checkpoints.export(record, tmp_path / "half", half=True))
    for name, weights in record.tensors().items():
        kept = half.tensors()[name]
        assert kept.dtype == torch.float16
        torch.testing.assert_close(kept.float(), weights, rtol=1e-3, atol=1e-4)
    score = half.score()
    assert all(p.dtype == torch.float32 for p in score.parameters())
    x, sigma = torch.rand(2, 1, 28, 28), score.sigmas[:2]
    torch.testing.assert_close(score(x, sigma), record.score()(x, sigma), rtol=0.02, atol=0.05)
    assert half.manifest["rounded_from"] == record.weights_sha256 != half.weights_sha256
    again = checkpoints.export(half, tmp_path / "again", half=True)
    assert again.manifest == half.manifest  # rounding twice is rounding once


def save_bundle(record, name, weights_sha256):
    return checkpoints.save(
        record.folder / "bundles" / name,
        {"results": {"samples": torch.zeros(2)}},
        kind="bundle",
        provenance={"weights_sha256": weights_sha256},
    )


def test_bundles_belong_to_the_weights_they_were_measured_with(record):
    save_bundle(record, "good", record.weights_sha256)
    save_bundle(record, "stale", "0" * 64)
    assert record.bundle("good").tensors("results").keys() == {"samples"}
    with pytest.raises(CorruptFileError, match="'stale' was measured with other weights"):
        record.bundle("stale")
    for name in ("x", ".."):
        with pytest.raises(UnknownNameError, match=f"of 'model' '{name}'; known: good, stale"):
            record.bundle(name)


def test_bundles_of_weights_that_were_rounded_since_still_belong_to_them(record, tmp_path):
    half = pretrained.model(checkpoints.export(record, tmp_path / "half", half=True))
    save_bundle(half, "before", record.weights_sha256)
    save_bundle(half, "after", half.weights_sha256)
    save_bundle(half, "stale", "0" * 64)
    save_bundle(half, "unknown", None)
    assert half.bundle("before").tensors("results")
    assert half.bundle("after").tensors("results")
    for name in ("stale", "unknown"):
        with pytest.raises(CorruptFileError, match=f"'{name}' was measured with other weights"):
            half.bundle(name)
    save_bundle(record, "after", half.weights_sha256)
    with pytest.raises(CorruptFileError, match="'after' was measured with other weights"):
        record.bundle("after")


def test_replacing_a_record_keeps_its_bundles(record):
    save_bundle(record, "good", record.weights_sha256)
    checkpoints.save(record.folder, OLD, kind="ncsn")
    assert (record.folder / "bundles" / "good" / MANIFEST).is_file()


# --- results that belong to no checkpoint -------------------------------------------------------


@pytest.fixture
def shipped_results(tmp_path, monkeypatch):
    """A package that ships the results "cost" and "spread", and a folder that is no record."""
    folder = tmp_path / "package" / "results"
    monkeypatch.setattr(pretrained, "RESULTS", folder)
    for name in ("spread", "cost"):
        parts = {"curves": {"seconds": torch.arange(3.0), "name": torch.tensor(len(name))}}
        checkpoints.save(folder / name, parts, kind="results", metrics={"points": 3})
    (folder / "unfinished").mkdir()
    checkpoints.save(tmp_path / "elsewhere", OLD, kind="results")
    return folder


def test_results_are_found_by_name(shipped_results):
    found = pretrained.results("cost")
    assert (found.name, found.kind, found.folder) == ("cost", "results", shipped_results / "cost")
    assert found.metrics == {"points": 3}
    assert torch.equal(found.tensors("curves")["seconds"], torch.arange(3.0))
    assert found.tensors("curves")["name"] == 4
    assert pretrained.results("spread").tensors("curves")["name"] == 6


@pytest.mark.parametrize("name", ["costs", "", ".", "..", "unfinished", "../../elsewhere"])
def test_unknown_results_list_what_there_is(shipped_results, name):
    """Only names count: no other folder can be opened through one."""
    with pytest.raises(UnknownNameError) as caught:
        pretrained.results(name)
    assert str(caught.value) == f"unknown results {name!r}; known: cost, spread"


def test_a_package_without_results_knows_none(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "RESULTS", tmp_path / "missing")
    with pytest.raises(UnknownNameError, match="unknown results 'cost'; known: none"):
        pretrained.results("cost")


def test_damaged_results_are_noticed(shipped_results):
    cost = pretrained.results("cost")
    (shipped_results / "spread" / MANIFEST).write_text("{", encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"manifest\.json of record 'spread'"):
        pretrained.results("spread")
    path = cost.folder / cost.manifest["files"]["curves"]["name"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="of record 'cost' is truncated or altered"):
        pretrained.results("cost").tensors("curves")


# --- what ships with the package ---------------------------------------------------------------


@pytest.mark.parametrize("name", pretrained.available())
def test_shipped_records_are_whole_and_fit_their_networks(name):
    record = pretrained.load(name)
    assert "state" not in record.manifest["files"]
    assert record.provenance["seed"] >= 0
    for part in record.manifest["files"]:
        assert all(tensor.isfinite().all() for tensor in record.tensors(part).values())
    listed = {entry["name"] for entry in record.manifest["files"].values()}
    assert {path.name for path in record.folder.glob("*.safetensors")} == listed
    if record.kind == "ncsn":
        score = record.score()
        x = torch.rand(2, *score.network.image_shape)
        assert score(x, score.sigmas[[0, -1]]).isfinite().all()
    else:
        assert record.classifier()(torch.rand(2, 1, 28, 28)).isfinite().all()
    for manifest in record.folder.glob(f"bundles/*/{MANIFEST}"):
        bundle = record.bundle(manifest.parent.name)
        for part in bundle.manifest["files"]:
            assert bundle.tensors(part)


@pytest.mark.parametrize("name", sorted(p.parent.name for p in RESULTS.glob(f"*/{MANIFEST}")))
def test_shipped_results_are_whole(name):
    record = pretrained.results(name)
    assert record.provenance["seed"] >= 0
    for part in record.manifest["files"]:
        assert record.tensors(part)
    listed = {entry["name"] for entry in record.manifest["files"].values()}
    assert {path.name for path in record.folder.glob("*.safetensors")} == listed
