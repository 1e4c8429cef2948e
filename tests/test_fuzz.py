"""A damaged file gives an error of ours or what it holds: no crash, no hang, no flood of memory.

Every file is read in a process that may allocate a gigabyte and no more, and each within seconds.
The suite tries some hundred mutations of every kind of file, `make stress` more than ten thousand.
"""

import gzip
import hashlib
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import struct
from collections import Counter
from pathlib import Path

import lives
import plain
import pytest
import torch
from jaxtyping import TypeCheckError

from ncsn_core import checkpoints, config, networks, pretrained
from ncsn_core.config import load_config
from ncsn_core.convert import convert
from ncsn_core.data.idx import read_idx
from ncsn_core.errors import NCSNError, UnknownNameError

SECONDS = 10
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Raw bytes with one to four accidents: flips, other bytes, cuts, repetitions, digits."""
    raw = bytearray(raw)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        if not raw:
            break
        at = chance.randrange(len(raw))
        kind = chance.randrange(6)
        if kind == 0:
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            raw[at] = chance.choice(INTERESTING)
        elif kind == 2:
            del raw[at:]
        elif kind == 3:
            del raw[at : at + chance.randrange(1, 16)]
        elif kind == 4:
            raw[at:at] = raw[at : at + chance.randrange(1, 64)]
        else:  # text: a number grows by many digits
            digits = [i for i, c in enumerate(raw) if 48 <= c <= 57]
            if digits:
                at = chance.choice(digits)
                raw[at:at] = b"9" * chance.randrange(1, 12)
    return bytes(raw)


# --- what is read, from a folder that holds a good file ------------------------------------------


class Idx:
    """A gzipped IDX file, damaged after compression or before it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "x.gz"
        header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 5, 6)
        self.raw = header + bytes(range(120))

    def damage(self, chance: random.Random) -> None:
        if chance.random() < 0.5:
            self.path.write_bytes(mutated(gzip.compress(self.raw, mtime=0), chance))
        else:
            self.path.write_bytes(gzip.compress(mutated(self.raw, chance), mtime=0))

    def read(self) -> bool:
        tensor = read_idx(self.path)
        return tensor.numel() < 1 << 20


class Checkpoint:
    """A record: a damaged manifest, damaged tensors, or both damaged with hashes that fit them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "record"
        settings = load_config("mnist", "smoke", channels=2).to_dict()
        weights = networks.build_network(settings).state_dict()
        self.record = checkpoints.save(
            self.folder, {"weights": weights}, kind="ncsn", config=settings
        )
        self.weights = self.record.tensors()
        self.manifest = (self.folder / "manifest.json").read_bytes()
        (self.file,) = self.folder.glob("*.safetensors")
        self.raw = self.file.read_bytes()
        self.forged = False

    def damage(self, chance: random.Random) -> None:
        kind = chance.randrange(4)
        self.forged = kind >= 2
        manifest, raw = self.manifest, self.raw
        if kind == 0:
            manifest = mutated(manifest, chance)
        elif kind == 1:
            raw = mutated(raw, chance)
        else:  # what no accident does: the hashes are those of the damaged content
            content = json.loads(manifest)
            if kind == 2:
                raw = mutated(raw, chance)
                content["files"]["weights"]["sha256"] = hashlib.sha256(raw).hexdigest()
            else:
                name = chance.choice(list(content["config"]))
                value = chance.choice([-1, 0, 3, 10**9, 10**30, 1e300, None, "x", [], True])
                content["config"][name] = value
            content["sha256"] = checkpoints.manifest_sha256(content)
            manifest = json.dumps(content).encode()
        (self.folder / "manifest.json").write_bytes(manifest)
        self.file.write_bytes(raw)

    def read(self) -> bool:
        record = pretrained.load(self.folder)
        score = record.score()
        same = all(torch.equal(w, self.weights[k]) for k, w in record.tensors().items())
        if math.prod(score.network.image_shape) < 1 << 20:  # no weight depends on the image's size
            score(torch.zeros(1, *score.network.image_shape), score.sigmas[:1])
        return self.forged or (same and record.manifest == self.record.manifest)


class Authors:
    """A checkpoint in the authors' format: a zip with a pickle of tensors."""

    def __init__(self, folder: Path) -> None:
        self.path, self.made = folder / "checkpoint.pth", folder / "made"
        torch.save([plain.CondRefineNetDilated(2, 1, 10).state_dict()], self.path)
        self.raw = self.path.read_bytes()

    def damage(self, chance: random.Random) -> None:
        self.path.write_bytes(mutated(self.raw, chance))

    def read(self) -> bool:
        shutil.rmtree(self.made, ignore_errors=True)
        convert(self.path, self.made, "mnist")
        return True


KINDS = (Idx, Checkpoint, Authors)


def attack(kind: type, folder: Path, count: int, seed: int, report: object) -> None:
    """Damage and read so many times; report how it went."""
    chance = random.Random(seed)
    torch.manual_seed(0)
    victim = kind(folder)
    victim.damage(random.Random(0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _too_long)
    outcomes = Counter()
    for number in range(count):
        victim.damage(chance)
        signal.alarm(SECONDS)
        try:
            outcomes["loaded" if victim.read() else "WRONG"] += 1
        except NCSNError:
            outcomes["refused"] += 1
        except BaseException as error:
            signal.alarm(0)
            report.put(f"mutation {number} of seed {seed}: {type(error).__name__}: {error}")
            return
        signal.alarm(0)
    report.put(dict(outcomes))


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("count", [100, pytest.param(4000, marks=pytest.mark.stress)])
def test_a_damaged_file_is_refused_or_read_as_it_is(tmp_path, kind, count, figures):
    report = lives.processes.Queue()
    assert lives.finish(attack, kind, tmp_path, count, 0, report, seconds=1200) == 0
    outcomes = report.get(timeout=10)
    assert isinstance(outcomes, dict), outcomes
    assert "WRONG" not in outcomes
    assert outcomes["refused"] > count / 4, "the damage does no harm"
    figures(f"fuzzing of {kind.__name__}", mutations=count, **outcomes)


@pytest.mark.slow
def test_a_few_kilobytes_that_unpack_to_gigabytes_are_refused(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(NCSNError, match="larger than 268,435,456 bytes when unpacked"):
        read_idx(path)


# --- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chanels": 3}, "unknown setting 'chanels'; known: preset, profile, dataset"),
        ({"image_size": None}, "image_size must be a whole number; got None"),
        ({"image_size": "16"}, "image_size must be a whole number; got '16'"),
        ({"flip": 1}, "flip must be true or false; got 1"),
        ({"sigma_max": "1.0"}, "sigma_max must be a number; got '1.0'"),
        ({"sigma_min": float("nan")}, "noise levels must be positive and finite"),
        ({"levels": 10**9}, "1 to 100,000; got 1000000000"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_preset_with_a_bad_key_is_refused(monkeypatch, change, message):
    read = config._read

    def spoiled(name):
        tables = {key: dict(value) for key, value in read(name).items()}
        if name == "presets.yaml":
            tables["mnist"] |= change
        return tables

    monkeypatch.setattr(config, "_read", spoiled)
    # `make unit` checks types at run time, before the configuration does.
    with pytest.raises((ValueError, TypeCheckError)) as caught:
        load_config("mnist", "smoke")
    assert isinstance(caught.value, TypeCheckError) or re.search(message, str(caught.value))


def test_a_preset_without_a_key_is_refused(monkeypatch):
    read = config._read

    def spoiled(name):
        tables = {key: dict(value) for key, value in read(name).items()}
        tables.get("mnist", {}).pop("channels", None)
        tables.get("smoke", {}).get("training", {}).pop("channels", None)
        return tables

    monkeypatch.setattr(config, "_read", spoiled)
    with pytest.raises(ValueError, match="the preset 'mnist' under 'smoke' lacks channels"):
        load_config("mnist", "smoke")


def test_an_unknown_name_is_an_error_of_ours():
    assert issubclass(UnknownNameError, NCSNError)
