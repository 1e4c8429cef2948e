"""Drawing many samples in batches."""

import pytest
import torch

from ncsn_core.generation import generate
from ncsn_core.networks import NoiseConditionalScore
from ncsn_core.randomness import generator_for
from ncsn_core.samplers import annealed_langevin
from ncsn_core.schedules import geometric_ladder

SIGMAS = geometric_ladder(1.0, 0.1, 3)


class PointMass(torch.nn.Module):
    """−x/σ² by level index, counting the images that it is asked for."""

    images = 0

    def forward(self, x, level):
        self.images += len(x)
        return -x / SIGMAS[level].reshape(-1, 1, 1, 1) ** 2


@pytest.fixture
def score():
    return NoiseConditionalScore(PointMass(), SIGMAS)


def draw(score, count=5, **options):
    small = {"batch_size": 2, "epsilon": 2e-3, "steps_per_level": 3, "progress": False}
    return generate(score, (1, 2, 2), count, **small | options)


def test_a_batch_is_annealed_langevin_from_uniform_noise(score):
    got = draw(score, count=2, seed=4)
    generator = generator_for(4, 0)
    start = torch.rand(2, 1, 2, 2, generator=generator)
    expected = annealed_langevin(
        score, start, SIGMAS, epsilon=2e-3, steps_per_level=3, generator=generator
    )
    assert torch.equal(got, expected)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_samples_and_evaluations_as_asked(score, count):
    samples = draw(score, count, denoise=True)
    assert samples.shape == (count, 1, 2, 2)
    assert samples.isfinite().all()
    assert score.network.images == count * (3 * 3 + 1)


def test_more_samples_leave_the_first_full_batches_as_they_are(score):
    assert torch.equal(draw(score, count=7)[:4], draw(score, count=4))


def test_samples_differ_between_chains_batches_and_seeds(score):
    samples = draw(score, count=6)
    assert len(samples.flatten(1).unique(dim=0)) == 6
    assert not torch.equal(samples, draw(score, count=6, seed=1))
    assert torch.equal(samples, draw(score, count=6))


def test_callback_is_told_where_the_batch_belongs(score):
    collected = torch.full((5, 1, 2, 2), float("nan"))
    steps = []

    def keep(first, state):
        steps.append((first, state.level, state.step))
        collected[first : first + len(state.x)] = state.x

    samples = draw(score, count=5, callback=keep)
    assert torch.equal(samples, collected)
    assert steps == [(f, i, t) for f in (0, 2, 4) for i in range(3) for t in range(3)]


def test_progress_bar_counts_the_evaluations(score, capsys):
    draw(score, count=3, progress=True)
    shown = capsys.readouterr().err
    assert "sampling" in shown
    assert "18/18" in shown


@pytest.mark.parametrize("options", [{"count": 0}, {"count": -1}, {"batch_size": 0}])
def test_counts_below_one_are_refused(score, options):
    with pytest.raises(ValueError, match="at least 1"):
        draw(score, **options)
