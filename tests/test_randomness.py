"""Generators named by integers: the same names give the same numbers, other names others."""

import itertools

import pytest
import torch

from ncsn_core.randomness import generator_for


def numbers(*name, count=4):
    return torch.rand(count, generator=generator_for(*name))


def test_same_integers_same_numbers():
    assert torch.equal(numbers(3, 1, 4), numbers(3, 1, 4))


def test_global_generator_plays_no_part():
    torch.manual_seed(1)
    first = numbers(0, 5)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, numbers(0, 5))
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_numbers_are_pinned():
    """A run is resumed by another version of the package too: these must never change."""
    assert generator_for(0, 1, 2).initial_seed() == 4623916464444550638


@pytest.mark.parametrize("length", [1, 2, 3])
def test_other_integers_other_numbers(length):
    names = itertools.product(range(6), repeat=length)
    seeds = [generator_for(*name).initial_seed() for name in names]
    assert len(set(seeds)) == 6**length


def test_order_of_the_integers_matters():
    assert not torch.equal(numbers(1, 2, 3), numbers(1, 3, 2))


def test_a_stream_is_not_the_first_of_its_own_streams():
    """Sampling draws batch b from (seed, b), training step k from (seed, 1, k): never the same."""
    seeds = [generator_for(*name).initial_seed() for name in [(7,), (7, 0), (7, 0, 0)]]
    assert len(set(seeds)) == 3
    assert generator_for(7, 1).initial_seed() != generator_for(7, 1, 0).initial_seed()


def test_neighbors_are_uncorrelated():
    """64 streams of 1,000 numbers: the correlations have standard deviation 1/√1000."""
    streams = torch.stack([numbers(0, 1, k, count=1000) for k in range(64)])
    correlations = torch.corrcoef(streams)[~torch.eye(64, dtype=torch.bool)]
    assert correlations.abs().max() < 5.5 / 1000**0.5
    assert correlations.square().mean() == pytest.approx(1 / 1000, rel=0.15)


@pytest.mark.parametrize("name", [(-1,), (0, -1)])
def test_negative_integers_are_refused(name):
    with pytest.raises(ValueError, match="non-negative"):
        generator_for(*name)
