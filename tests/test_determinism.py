"""What is the same to the last bit, and what only nearly: by precision, threads and resumption.

Every run has its own process.  `make stress` adds the compiled normalizations, which take a while.
"""

import hashlib

import lives
import pytest
import torch

from ncsn_core import checkpoints, devices, generation, provenance, run, training
from ncsn_core.config import load_config
from ncsn_core.networks import NoiseConditionalScore, RefineNet
from ncsn_core.randomness import generator_for
from ncsn_core.schedules import geometric_ladder

pytestmark = [pytest.mark.slow, pytest.mark.serial]  # two threads and one
STEPS = 6
# How far losses and samples may be apart when another number of threads adds up in another order.
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 3e-2}
KINDS = [
    ("32-true", False),
    ("bf16-mixed", False),
    pytest.param("32-true", True, marks=pytest.mark.stress),
    pytest.param("bf16-mixed", True, marks=pytest.mark.stress),
]


def train(folder, precision, compiled, threads, minutes, report):
    """Losses of every step and the hash of the weights."""
    torch.set_num_threads(threads)
    config = load_config(
        "mnist",
        "smoke",
        channels=8,
        train_images=64,
        batch_size=8,
        steps=STEPS,
        log_every=1,
        checkpoint_every=STEPS // 3,
    )
    shape = (64, 1, config.image_size, config.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator_for(0))
    training.load_images = lambda *_, **__: images
    losses = []
    log = run.Run.log

    def exact(run):  # the history rounds
        losses.extend(float(loss) for loss in run.losses)
        return log(run)

    run.Run.log = exact
    record = training.train(
        config,
        folder,
        device="cpu",
        precision=precision,
        compile=compiled,
        minutes=minutes,
        progress=False,
    )
    report.put((losses, record.weights_sha256))


def sample(precision, compiled, threads, report):
    """Samples of an untrained network, and their hash."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = RefineNet(8, 1, 28, levels=3)
    network.compile_normalizations(compiled)
    autocast = devices.autocast_dtype(precision)
    score = NoiseConditionalScore(network, geometric_ladder(1.0, 0.1, 3), autocast=autocast)
    samples = generation.sample(score.requires_grad_(False), 8, steps_per_level=2, progress=False)
    report.put((samples.flatten()[::97].tolist(), provenance.tensor_sha256(samples)))


def result_of(work, *arguments):
    report = lives.processes.Queue()
    process = lives.begin(work, *arguments, report)
    found = report.get(timeout=300)
    process.join(60)
    return found


def apart(first, second):
    """The largest difference, relative to the largest value."""
    a, b = torch.tensor(first), torch.tensor(second)
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize(("precision", "compiled"), KINDS)
def test_training_again_resumed_and_with_another_number_of_threads(
    tmp_path, precision, compiled, figures
):
    def run(name, threads, minutes=None):
        return result_of(train, tmp_path / name, precision, compiled, threads, minutes)

    losses, weights = run("first", 2)
    assert len(losses) == STEPS
    again, same_weights = run("again", 2)
    assert again == losses
    assert same_weights == weights

    pieces = []
    for _ in range(3):  # of two steps each
        piece, last_weights = run("pieces", 2, 0.0)
        pieces += piece
    assert pieces == losses
    assert last_weights == weights

    other, _ = run("one thread", 1)
    difference = apart(losses, other)
    assert difference < TOLERANCE[precision]
    figures(
        f"determinism of training, {precision}, {'compiled' if compiled else 'eager'}",
        again=again == losses,
        resumed=pieces == losses,
        threads=difference,
    )


@pytest.mark.parametrize(("precision", "compiled"), KINDS)
def test_sampling_again_and_with_another_number_of_threads(precision, compiled, figures):
    samples, digest = result_of(sample, precision, compiled, 2)
    _, same = result_of(sample, precision, compiled, 2)
    assert same == digest
    other, _ = result_of(sample, precision, compiled, 1)
    difference = apart(samples, other)
    assert difference < TOLERANCE[precision]
    figures(
        f"determinism of sampling, {precision}, {'compiled' if compiled else 'eager'}",
        again=same == digest,
        threads=difference,
    )


def test_a_record_of_the_same_tensors_has_the_same_bytes(tmp_path):
    digests = set()
    for name in ("a", "b"):
        checkpoints.save(tmp_path / name, {"weights": {"x": torch.arange(3.0)}}, kind="bundle")
        (file,) = (tmp_path / name).glob("*.safetensors")
        manifest = tmp_path / name / checkpoints.MANIFEST
        digests.add(hashlib.sha256(file.read_bytes() + manifest.read_bytes()).hexdigest())
    assert len(digests) == 1
