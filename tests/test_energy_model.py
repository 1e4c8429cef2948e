"""The energy model: its negatives, its loss, and that training lowers the energy of data."""

import pytest
import torch
from torch import nn

from ncsn_core.baselines.energy_model import EnergyModel, contrastive_divergence, short_run
from ncsn_core.parametrizations import score_from_log_density
from ncsn_core.randomness import generator_for
from ncsn_core.samplers import langevin


class Spring(nn.Module):
    """E(x) = λ‖x‖²/2, the energy of N(0, 1/λ)."""

    def __init__(self, stiffness):
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(stiffness))

    def forward(self, x):
        return self.stiffness * x.flatten(1).square().sum(1) / 2


# --- the network --------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (14, 14), (12, 20)])
def test_an_image_of_any_size_has_one_energy(height, width):
    assert EnergyModel(2)(torch.rand(3, 1, height, width)).shape == (3,)


def test_images_do_not_see_each_other():
    network, x = EnergyModel(2), torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_a_network_without_channels_is_refused():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        EnergyModel(0)


def test_the_energy_bends():
    """A slope that changes with x, which ReLU's would do nowhere."""
    network = EnergyModel(2).double()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    slope = score_from_log_density(network)
    assert not torch.allclose(slope(x), slope(x + 1e-3), rtol=1e-6)


# --- negatives ----------------------------------------------------------------------------------


def test_a_short_run_is_langevin_dynamics_with_that_score():
    spring, x = Spring(2.0), torch.randn(5, 3)
    settings = {"epsilon": 0.1, "steps": 7}
    found = short_run(spring, x, **settings, generator=generator_for(1))
    expected = langevin(lambda y: -2 * y, x, **settings, generator=generator_for(1))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


# --- the loss -----------------------------------------------------------------------------------


def test_the_gradient_is_the_difference_of_the_means():
    """For E = λx²/2 the derivative of the loss in λ is ⟨x²⟩/2 − ⟨x′²⟩/2."""
    spring, data, negatives = Spring(1.5), torch.randn(6, 1), torch.randn(6, 1)
    contrastive_divergence(spring, data, negatives).mean().backward()
    expected = (data.square().mean() - negatives.square().mean()) / 2
    torch.testing.assert_close(spring.stiffness.grad, expected)


def test_the_penalty_is_on_the_squares_of_both_energies():
    spring, x, y = Spring(1.0), torch.full((1, 1), 2.0), torch.full((1, 1), 4.0)
    assert contrastive_divergence(spring, x, y).item() == pytest.approx(2 - 8)
    penalized = contrastive_divergence(spring, x, y, penalty=0.1)
    assert penalized.item() == pytest.approx(2 - 8 + 0.1 * (4 + 64))


def test_no_gradient_flows_into_the_negatives():
    negatives = torch.randn(2, 3, requires_grad=True)
    contrastive_divergence(Spring(1.0), torch.randn(2, 3), negatives).sum().backward()
    assert negatives.grad is None


# --- training -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_maximum_likelihood_finds_the_stiffness_of_a_gaussian():
    """Data of standard deviation ½, and runs long enough to forget their start.

    Langevin dynamics of step ε gives the spring λ the variance 1/(λ(1 − ελ/4)), so that training
    ends where this is ¼: not at λ = 4, but at 4.51 for ε = 0.1.
    """
    spring, generator = Spring(1.0), generator_for(0)
    optimizer = torch.optim.Adam(spring.parameters(), 0.1)
    found = []
    for _ in range(150):
        data = torch.randn(256, 1, generator=generator) / 2
        start = torch.randn(256, 1, generator=generator)
        negatives = short_run(spring, start, steps=20, epsilon=0.1, generator=generator)
        loss = contrastive_divergence(spring, data, negatives).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(spring.stiffness.item())
    assert sum(found[-50:]) / 50 == pytest.approx(4.51, rel=0.07)


def test_a_step_pushes_the_data_below_its_negatives():
    """Bright squares against short runs from noise: level before training, below it afterwards."""
    torch.manual_seed(0)
    network, generator = EnergyModel(4), generator_for(0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    data = torch.zeros(16, 1, 8, 8)
    data[..., 2:6, 2:6] = 1

    def gap():
        noise = torch.rand(16, 1, 8, 8, generator=generator_for(1))
        negatives = short_run(network, noise, steps=5, generator=generator_for(2))
        return (network(negatives) - network(data)).mean().item()

    gaps = [gap()]
    for _ in range(20):
        start = torch.rand(16, 1, 8, 8, generator=generator)
        negatives = short_run(network, start, steps=5, generator=generator)
        loss = contrastive_divergence(network, data, negatives, penalty=1e-3).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gaps.append(gap())
    assert gaps[1] > gaps[0]
    assert abs(gaps[0]) < 0.05
    assert gaps[-1] > 0.2
