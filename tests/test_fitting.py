"""Fitting a score: closed-form updates, closed-form solutions and what is drawn."""

import math

import pytest
import torch
from scores import global_generator_untouched
from torch import nn

from ncsn_core.distributions import GaussianMixture
from ncsn_core.errors import NCSNError, NonFiniteLossError
from ncsn_core.fitting import fit
from ncsn_core.networks import MLP, Ensemble
from ncsn_core.objectives import (
    denoising_score_matching,
    explicit_score_matching,
    finite_difference_score_matching,
    implicit_score_matching,
    sliced_score_matching,
    sliced_score_matching_vr,
)
from ncsn_core.parametrizations import unconditional
from ncsn_core.randomness import generator_for

MEAN = torch.tensor([0.5, -1.0])
COVARIANCE = torch.tensor([[1.0, 0.4], [0.4, 0.6]])
GAUSSIAN = GaussianMixture.from_covariances(
    MEAN.unsqueeze(0), COVARIANCE.unsqueeze(0), torch.ones(1)
)
NOISE = 0.5


def denoising(network, x, generator):
    """A loss that draws: from the generator that it is given."""
    sigma = torch.full((len(x),), NOISE)
    return denoising_score_matching(unconditional(network), x, sigma, generator=generator)


OBJECTIVES = {
    "explicit": lambda s, x, g: explicit_score_matching(s, x, GAUSSIAN.score),
    "implicit": lambda s, x, g: implicit_score_matching(s, x),
    "sliced": lambda s, x, g: sliced_score_matching(s, x, count=2, generator=g),
    "sliced, variance reduced": lambda s, x, g: sliced_score_matching_vr(s, x, generator=g),
    "finite differences": lambda s, x, g: finite_difference_score_matching(
        s, x, step=0.1, generator=g
    ),
    "denoising": denoising,
}


class Constant(nn.Module):
    """A score that is one number everywhere, its only parameter."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return self.value.expand_as(x)


def ones(count, generator):
    return torch.ones(count, 1)


def pull_down(network, x, generator):
    """A loss with gradient 1 in the number of `Constant`."""
    return network(x).squeeze(1)


def squares(network, x, generator):
    return (network(x) - torch.sin(x)).square().sum(1)


def values(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


# --- what is learned ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_finds_the_score_of_a_gaussian(name):
    """An affine network holds it, −Σ⁻¹(x − μ); denoising finds that of Σ + σ²I, 0.8 away."""
    network = MLP(2, layers=0)
    options = {"steps": 80, "batch_size": 512, "learning_rate": 0.1}
    fit(network, OBJECTIVES[name], GAUSSIAN.sample, **options)
    noise = NOISE**2 if name == "denoising" else 0.0
    precision = torch.linalg.inv(COVARIANCE + noise * torch.eye(2))
    errors = (network[0].weight + precision, network[0].bias - precision @ MEAN)
    assert max(error.abs().max().item() for error in errors) < 0.2


def test_a_network_comes_closer_to_its_target():
    network = MLP(1, hidden=16)
    history = fit(
        network,
        squares,
        lambda n, g: 2 * torch.randn(n, 1, generator=g),
        steps=100,
        learning_rate=2e-2,
    )
    assert history.shape == (100, 1)
    assert history[-20:].mean() < 0.4 * history[:5].mean()


# --- the updates -------------------------------------------------------------------------------


def test_adam_moves_by_its_rate_under_a_constant_gradient():
    network = Constant()
    fit(network, pull_down, ones, steps=50, learning_rate=0.01, decay=False)
    assert network.value.item() == pytest.approx(-50 * 0.01, rel=1e-4)


def test_the_rate_falls_to_zero_along_a_cosine():
    """Σ (1 + cos πk/n)/2 over the n steps is (n + 1)/2; the path itself tells every rate."""
    network, path = Constant(), []
    fit(
        network,
        pull_down,
        ones,
        steps=50,
        learning_rate=0.01,
        callback=lambda step, n: path.append(n.value.item()),
    )
    assert network.value.item() == pytest.approx(-0.01 * 51 / 2, rel=1e-4)
    rates = -torch.tensor([*path, network.value.item()]).diff()
    expected = 0.005 * (1 + torch.cos(math.pi * torch.arange(50) / 50))
    torch.testing.assert_close(rates, expected, rtol=1e-3, atol=1e-7)


def test_gradients_do_not_add_up_over_the_steps():
    """A gradient that changes its sign every step: Adam stays near the start."""
    network = Constant()
    signs = iter([1.0, -1.0] * 20)
    fit(
        network,
        lambda s, x, g: next(signs) * s(x).squeeze(1),
        ones,
        steps=40,
        learning_rate=0.01,
        decay=False,
    )
    parameter, first, second = 0.0, 0.0, 0.0  # Adam as its paper writes it
    for step in range(1, 41):
        gradient = 1.0 if step % 2 else -1.0
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        parameter -= 0.01 * (first / (1 - 0.9**step)) / (second / (1 - 0.999**step)) ** 0.5
    assert network.value.item() == pytest.approx(parameter, rel=1e-3)


def test_the_callback_sees_every_step_before_its_update():
    network, seen = Constant(), []
    history = fit(
        network,
        lambda s, x, g: s(x).squeeze(1),
        ones,
        steps=5,
        callback=lambda step, n: seen.append((step, n is network, n.value.item())),
    )
    assert [step for step, _, _ in seen] == list(range(5))
    assert all(same for _, same, _ in seen)
    assert seen[0][2] == 0
    assert history.squeeze(1).tolist() == pytest.approx([value for _, _, value in seen])
    assert network.value.item() != seen[-1][2]


def test_no_steps_change_nothing():
    network = Constant(2.0)
    assert fit(network, pull_down, ones, steps=0).shape == (0, 1)
    assert network.value.item() == 2.0


# --- several members ---------------------------------------------------------------------------


def test_an_ensemble_is_trained_as_its_members_would_be_alone():
    """Member m given the same points and the same noise; its losses are a column of the history."""
    steps, size, members = 20, 8, 3
    ensemble = Ensemble.of(lambda: MLP(2, hidden=6), range(members)).double()
    alone = [ensemble.member(m).requires_grad_(True) for m in range(members)]
    data = torch.randn(steps, members, size, 2, dtype=torch.float64)

    def served(rows):
        batches = iter(rows)
        return lambda count, generator: next(batches).reshape(count, 2)

    options = {"steps": steps, "batch_size": size, "learning_rate": 0.02}
    history = fit(ensemble, squares, served(data), **options)
    assert history.shape == (steps, members)
    for m, network in enumerate(alone):
        own = fit(network, squares, served(data[:, m]), **options)
        torch.testing.assert_close(history[:, m : m + 1], own)
        for got, expected in zip(
            ensemble.member(m).parameters(), network.parameters(), strict=True
        ):
            torch.testing.assert_close(got, expected.detach(), rtol=1e-9, atol=1e-9)


def test_every_member_sees_a_full_batch_of_fresh_points():
    ensemble, asked, seen = Ensemble.of(lambda: MLP(1, 2), range(3)), [], []

    def sample(count, generator):
        asked.append(count)
        return torch.rand(count, 1, generator=generator)

    def loss(network, x, generator):
        seen.append(x)
        return squares(network, x, generator)

    fit(ensemble, loss, sample, steps=4, batch_size=5)
    assert asked == [15] * 4
    assert len(torch.cat(seen).unique()) == 60


def test_the_history_is_the_mean_loss_of_every_batch():
    ensemble = Ensemble.of(lambda: MLP(1, 2), range(3))
    first = [ensemble.member(m) for m in range(3)]
    x = torch.linspace(-2, 2, 12).unsqueeze(1)
    history = fit(ensemble, squares, lambda n, g: x, steps=2, batch_size=4)
    expected = [
        squares(network, part, None).mean() for network, part in zip(first, x.chunk(3), strict=True)
    ]
    torch.testing.assert_close(history[0], torch.stack(expected))
    assert not torch.equal(history[0], history[1])
    assert not history.requires_grad


# --- what is drawn -----------------------------------------------------------------------------


def test_the_seed_decides_data_and_noise():
    def train(seed):
        network = Ensemble.of(lambda: MLP(2, 4), range(2))
        history = fit(network, denoising, GAUSSIAN.sample, steps=5, batch_size=8, seed=seed)
        return history, values(network)

    torch.manual_seed(1)
    with global_generator_untouched():
        first, parameters = train(5)
    torch.manual_seed(2)
    second, again = train(5)
    assert torch.equal(first, second)
    assert all(map(torch.equal, parameters, again))
    other, _ = train(6)
    assert not torch.equal(first[0], other[0])


def test_data_and_noise_are_not_the_same_numbers():
    """Both come from one generator; started twice, it would give the noise of the data."""
    drawn = []

    def sample(count, generator):
        drawn.append(torch.randn(count, 1, generator=generator))
        return drawn[-1]

    def loss(network, x, generator):
        drawn.append(torch.randn(x.shape, generator=generator))
        return network(x).squeeze(1)

    fit(Constant(), loss, sample, steps=6, batch_size=50)
    assert len(torch.cat(drawn).unique()) == 600


# --- losses that are not finite ----------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_step_and_member_and_spoils_nothing(bad):
    ensemble = Ensemble.of(lambda: MLP(1, 2), range(3))
    before, calls = [], []

    def loss(network, x, generator):
        calls.append(1)
        losses = squares(network, x, generator)
        if len(calls) < 4:
            return losses
        factor = torch.ones(12)
        factor[5] = bad  # a single point of the second member
        return losses * factor

    with pytest.raises(NonFiniteLossError, match=r"network 2 of 3 is -?(nan|inf) in step 4"):
        fit(
            ensemble,
            loss,
            lambda n, g: torch.rand(n, 1, generator=g),
            steps=9,
            batch_size=4,
            callback=lambda step, network: before.append(values(network)),
        )
    assert len(before) == len(calls) == 4
    assert all(map(torch.equal, ensemble.parameters(), before[-1]))
    assert not all(map(torch.equal, before[0], before[-1]))


def test_a_plain_network_is_the_first_of_one():
    with pytest.raises(NonFiniteLossError, match="network 1 of 1 is nan in step 1; a smaller"):
        fit(Constant(), lambda s, x, g: s(x).squeeze(1) * math.nan, ones, steps=3)


def test_the_error_is_one_that_the_book_and_the_command_line_know():
    assert issubclass(NonFiniteLossError, NCSNError)
    assert issubclass(NonFiniteLossError, FloatingPointError)


def test_a_rate_that_is_far_too_large_ends_in_that_error():
    x = 10 * torch.randn(64, 1, generator=generator_for(0))
    with pytest.raises(NonFiniteLossError, match="a smaller learning rate may help"):
        fit(
            MLP(1, layers=0),
            lambda s, x, g: (s(x) * x).pow(4).sum(1),
            lambda n, g: x,
            steps=50,
            batch_size=64,
            learning_rate=1e12,
        )
