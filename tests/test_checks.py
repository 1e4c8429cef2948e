"""That a step waits for nothing on a GPU, and that errors are the same for it.

What a GPU would be waited for is counted on a CPU that is treated like one.
"""

import math
from functools import partial
from itertools import islice

import pytest
import speed
import torch
from registry import SAMPLERS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ncsn_core import _checks, samplers
from ncsn_core._checks import later, look, require
from ncsn_core.data import batches
from ncsn_core.networks import ContinuousScore, EnergyScore, NoiseConditionalScore, RefineNet
from ncsn_core.randomness import generator_for
from ncsn_core.samplers.state import guarded
from ncsn_core.schedules import geometric_ladder

CPU = torch.device("cpu")
READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique"}


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host has to know."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Treat the CPU like a GPU."""
    monkeypatch.setattr(_checks, "AT_ONCE", ())


@pytest.fixture
def waits(monkeypatch, like_a_gpu):
    """How often a GPU would have been waited for in a call."""

    def count(call):
        with Waits() as mode, monkeypatch.context() as patch:
            for name in ("tolist", "cpu", "numpy"):  # not seen by the mode, on a CPU

                def counted(tensor, original=getattr(Tensor, name)):  # noqa: B008
                    mode.count += 1
                    return original(tensor)

                patch.setattr(Tensor, name, counted)
            call()
            return mode.count

    return count


# --- the check itself ----------------------------------------------------------------------------


def test_a_cpu_is_asked_at_once():
    with later(), pytest.raises(KeyError, match="first"):
        require(torch.tensor(False), lambda: KeyError("first"))
    require(torch.tensor(True), lambda: pytest.fail("it holds"))


def test_a_gpu_is_asked_at_the_end_and_answers_with_the_first_that_failed(like_a_gpu):
    @later()
    def ask():
        for holds, name in ((True, "none"), (False, "first"), (False, "second")):
            require(torch.tensor(holds), lambda name=name: KeyError(name))
            passed.append(name)

    passed = []
    with pytest.raises(KeyError, match="first"):
        ask()
    assert passed == ["none", "first", "second"]
    with later():  # nothing is left of it
        pass
    with pytest.raises(KeyError, match="alone"):
        require(torch.tensor(False), lambda: KeyError("alone"))


def test_a_gpu_is_asked_when_so_many_checks_wait(like_a_gpu):
    @later()
    def ask():
        for i in range(1000):
            require(torch.tensor(i != 130), lambda: KeyError())
            passed.append(i)

    passed = []
    with pytest.raises(KeyError):
        ask()
    assert len(passed) == _checks.MAX_PENDING - 1


def test_inside_of_another_block_or_with_a_list_nobody_looks_before_the_owner(like_a_gpu):
    mine = []
    for _ in range(2):
        with later(mine), later():
            require(torch.tensor(False), lambda: KeyError("mine"))
    assert len(mine) == 2
    with pytest.raises(KeyError, match="mine"):
        look(mine)
    look(mine)


def test_what_went_wrong_first_is_said_first(like_a_gpu):
    @later()
    def fail():
        require(torch.tensor(False), lambda: KeyError("cause"))
        raise ZeroDivisionError

    with pytest.raises(KeyError, match="cause") as caught:
        fail()
    assert isinstance(caught.value.__context__, ZeroDivisionError)


# --- samplers ------------------------------------------------------------------------------------


def quiet(state):
    """A callback, which must not cost anything either."""


def pull(x, sigma=None):
    return -x


def run(name, score, x, n):
    """A sampler for n levels, or n steps where it has none."""
    case = SAMPLERS[name]
    long = {"sigmas": geometric_ladder(levels=n)} if "sigmas" in case.options else {"steps": n}
    return case(score, x, callback=quiet, **long)


each = pytest.mark.parametrize("name", SAMPLERS)


@each
def test_more_steps_do_not_wait_more_often(name, waits):
    x = torch.rand(2, 1, 8, 8)
    few, many = (waits(lambda n=n: run(name, pull, x, n)) for n in (2, 12))
    assert 1 <= few == many <= 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NoiseConditionalScore, EnergyScore, ContinuousScore])
def test_a_network_does_not_wait_inside_of_a_sampler(kind, waits):
    extra = {"data_mean": 0.5, "data_std": 0.5} if kind is ContinuousScore else {}
    score = kind(RefineNet(2, 1, 8, levels=2), geometric_ladder(levels=2), **extra)
    x = torch.rand(2, 1, 8, 8)
    few, many = (
        waits(lambda n=n: samplers.annealed_langevin(score, x, score.sigmas, steps_per_level=n))
        for n in (1, 3)
    )
    assert few == many
    assert waits(lambda: score(x, score.sigmas)) == 1  # by itself it answers for its levels


@each
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_reported_in_the_same_words(name, bad, monkeypatch):
    def message():
        def score(x, sigma=None):
            calls.append(1)
            return torch.full_like(x, bad) if len(calls) == 4 else -x

        calls = []
        with pytest.raises(FloatingPointError) as caught:
            run(name, score, torch.rand(2, 3), 6)
        return str(caught.value), len(calls)

    at_once, calls = message()
    assert calls == 4
    monkeypatch.setattr(_checks, "AT_ONCE", ())
    waited, calls = message()
    assert waited == at_once
    assert calls > 4


def test_a_log_density_that_is_not_a_number_is_reported_in_the_same_words(like_a_gpu):
    def log_density(x):
        calls.append(1)
        return torch.full((2,), math.nan) if len(calls) == 4 else -x.square().sum(1) / 2

    calls = []
    with pytest.raises(FloatingPointError, match="log-density is not a number at evaluation 4"):
        samplers.mala(pull, torch.rand(2, 3), log_density=log_density, epsilon=0.1, steps=6)
    assert len(calls) == 7


@pytest.mark.parametrize("kind", [NoiseConditionalScore, ContinuousScore])
def test_a_stranger_is_named_in_the_same_words(kind, monkeypatch):
    extra = {"data_mean": 0.5, "data_std": 0.5} if kind is ContinuousScore else {}

    class Answers(torch.nn.Module):
        def forward(self, x, level):
            return x

    score = kind(Answers(), geometric_ladder(levels=3), **extra)
    call = partial(
        samplers.annealed_langevin, score, torch.rand(2, 3), torch.tensor([1.0, 0.1, 0.005])
    )
    with pytest.raises(ValueError, match=r"sigma = 0\.005 ") as at_once:
        call(steps_per_level=2)
    monkeypatch.setattr(_checks, "AT_ONCE", ())
    with pytest.raises(ValueError, match=r"sigma = 0\.005 ") as waited:
        call(steps_per_level=2)
    assert str(waited.value) == str(at_once.value)
    with pytest.raises(ValueError, match=r"sigma = 0\.005 "):  # outside of a sampler, at once
        score(torch.rand(1, 3), torch.tensor([0.005]))


def test_samples_do_not_depend_on_when_they_are_checked(monkeypatch):
    def sample():
        return samplers.annealed_langevin(
            pull, torch.zeros(2, 3), geometric_ladder(levels=3), generator=generator_for(0)
        )

    at_once = sample()
    monkeypatch.setattr(_checks, "AT_ONCE", ())
    assert torch.equal(sample(), at_once)


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"objective": "sliced"},
        {"parametrization": "energy"},
        {"parametrization": "continuous"},
        {"gradient_clip": 1.0, "flip": True, "conditional": False},
    ],
)
def test_a_training_step_waits_for_nothing(change, waits, tiny_config):
    config = tiny_config(image_size=8, **change)
    run = speed.new_run(config, speed.Way(False, "bf16-mixed"), CPU)
    images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    stream = batches(images, config.batch_size, seed=0, flip=config.flip)

    def steps():
        for _ in range(2):
            speed.advance(run, stream)

    assert waits(steps) == 0
    assert waits(lambda: run.log()) > 0
    assert not run.checks


def test_images_are_chosen_where_they_are(monkeypatch):
    """The order of an epoch goes to the device once, and not batch by batch."""
    moved, to = [], Tensor.to

    def move(tensor, *args, **kwargs):
        moved.append(args)
        return to(tensor, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", move)
    steps = [step for step, _, _ in islice(batches(torch.zeros(6, 1, 2, 2).byte(), 2, seed=0), 9)]
    assert steps == list(range(9))
    assert moved == [(CPU,)] * 3


def test_what_a_training_step_has_not_waited_for_is_noticed_at_the_next_log(
    like_a_gpu, tiny_config
):
    config = tiny_config(image_size=8, objective="sliced")
    run = speed.new_run(config, speed.Way(False, "32-true"), CPU)
    speed.advance(run, iter([(0, torch.full((4, 1, 8, 8), math.nan), generator_for(0))]))
    with pytest.raises(ValueError, match="sample 0 of the batch holds NaN"):
        run.log()


def test_what_is_given_beside_x_goes_to_its_device():
    """A ladder from `model.sigmas`, images and a mask on the CPU, beside chains on a GPU."""

    @guarded()
    def sample(score, x, sigmas, *, known, epsilon=0.1):
        return sigmas.device, known.device, epsilon

    x = torch.empty(2, device="meta")
    found = sample(pull, x, torch.ones(2), known=torch.ones(2, dtype=torch.bool))
    assert found == (x.device, x.device, 0.1)
