"""From σ to a level index: the score that wraps the network."""

import pytest
import torch
from torch import nn

from ncsn_core.divergence import jacobian
from ncsn_core.networks import ContinuousScore, EnergyScore, NoiseConditionalScore, RefineNet
from ncsn_core.schedules import geometric_ladder, per_sample


class AnswersItsLevel(nn.Module):
    """A network that fills its output with the level index, and takes part in autocast."""

    def forward(self, x, level):
        return torch.zeros_like(x) + per_sample(level, x)


@pytest.fixture
def score():
    return NoiseConditionalScore(AnswersItsLevel(), geometric_ladder())


def test_each_sigma_of_the_ladder_finds_its_level(score):
    answers = score(torch.zeros(10, 1, 2, 2), geometric_ladder())
    assert answers[:, 0, 0, 0].tolist() == list(range(10))


def test_levels_may_be_mixed_in_a_batch(score):
    sigma = score.sigmas[[3, 3, 0, 9]]
    assert score(torch.zeros(4, 1), sigma).flatten().tolist() == [3, 3, 0, 9]


@pytest.mark.parametrize("stranger", [0.5, 0.0, -1.0, float("nan"), 0.0100001])
def test_a_sigma_between_the_levels_is_refused(score, stranger):
    sigma = torch.tensor([1.0, stranger])
    with pytest.raises(ValueError, match=f"sigma = {stranger:.6g} is not a noise level") as caught:
        score(torch.zeros(2, 1), sigma)
    assert "0.5995" in str(caught.value)  # the ladder is listed
    assert "score.sigmas" in str(caught.value)


@pytest.mark.parametrize("values", [[0.1, 1.0], [1.0, 1.0], [1.0, 0.0], []])
def test_sigmas_must_be_a_ladder(values):
    with pytest.raises(ValueError, match=r"level|ladder"):
        NoiseConditionalScore(AnswersItsLevel(), torch.tensor(values))


def test_the_ladder_is_copied_and_not_part_of_the_weights():
    sigmas = geometric_ladder()
    score = NoiseConditionalScore(AnswersItsLevel(), sigmas)
    sigmas.zero_()
    assert torch.equal(score.sigmas, geometric_ladder())
    assert dict(score.state_dict()) == {}


def test_with_a_refinenet_it_is_the_network_at_that_level():
    network = RefineNet(2, 1, 8, levels=3).requires_grad_(False)
    sigmas = geometric_ladder(levels=3)
    x = torch.rand(2, 1, 8, 8)
    got = NoiseConditionalScore(network, sigmas)(x, sigmas[[2, 0]])
    assert torch.equal(got, network(x, torch.tensor([2, 0])))


def test_autocast_runs_inside_in_bfloat16_and_answers_in_float32():
    network = RefineNet(2, 1, 8, levels=3).requires_grad_(False)
    inner = []
    network.blocks[0].conv1.register_forward_hook(lambda m, i, out: inner.append(out.dtype))
    sigmas = geometric_ladder(levels=3)
    x = torch.rand(2, 1, 8, 8)
    plain = NoiseConditionalScore(network, sigmas)(x, sigmas[:2])
    fast = NoiseConditionalScore(network, sigmas, autocast=torch.bfloat16)(x, sigmas[:2])
    assert inner == [torch.float32, torch.bfloat16]
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, plain, rtol=0.1, atol=0.1 * float(plain.abs().max()))


def test_an_unconditional_network_hears_the_same_index_at_every_level():
    score = NoiseConditionalScore(AnswersItsLevel(), geometric_ladder(), conditional=False)
    assert score(torch.zeros(10, 1), geometric_ladder()).flatten().tolist() == [0.0] * 10
    with pytest.raises(ValueError, match="not a noise level"):
        score(torch.zeros(1, 1), torch.tensor([0.5]))


# --- a score at every σ ---------------------------------------------------------------------------


class AnswersWithZero(nn.Module):
    def forward(self, x, level):
        return torch.zeros_like(x)


def continuous(network, **changes):
    settings = {"data_mean": 0.3, "data_std": 0.5} | changes
    return ContinuousScore(network, geometric_ladder(8.0, 0.01, 10), **settings)


def test_indices_of_a_continuous_score_are_linear_in_log_sigma():
    seen = []

    class Watches(nn.Module):
        def forward(self, x, level):
            seen.append(level)
            return x

    sigmas = geometric_ladder(8.0, 0.01, 10)
    between = (sigmas[3] * sigmas[4]).sqrt()
    continuous(Watches())(torch.zeros(3, 2), torch.stack([sigmas[0], between, sigmas[9]]))
    torch.testing.assert_close(seen[0], torch.tensor([0.0, 3.5, 9.0]), atol=1e-5, rtol=0)


def test_a_network_that_answers_zero_has_the_score_of_one_gaussian():
    x, sigma = torch.rand(4, 3), torch.tensor([8.0, 1.0, 0.1, 0.01])
    expected = -(x - 0.3) / (sigma[:, None] ** 2 + 0.25)
    torch.testing.assert_close(continuous(AnswersWithZero())(x, sigma), expected)


def test_the_best_network_behind_a_continuous_score_has_inputs_and_outputs_of_unit_variance():
    """For the data ±s: what the network sees, and what it should answer."""
    torch.manual_seed(0)
    s, n = 0.5, 200_000
    x = s * torch.randint(0, 2, (n, 1)).mul(2).sub(1).float() + 0.3
    for sigma in (0.01, 0.3, 8.0):
        seen = []

        class Watches(nn.Module):
            def forward(self, y, level, seen=seen):
                seen.append(2 * y - 1)
                return torch.zeros_like(y)

        noise = torch.randn_like(x)
        score = continuous(Watches())(x + sigma * noise, torch.full((n,), sigma))
        c = (sigma**2 + s**2) ** -0.5
        wanted = (-noise / sigma - score) * sigma / (c * s)  # the F whose score is the target's
        assert seen[0].var().item() == pytest.approx(1, abs=0.02)
        assert wanted.var().item() == pytest.approx(1, abs=0.02)


def test_a_continuous_score_is_continuous_and_meets_the_rows_of_its_ladder():
    torch.manual_seed(0)
    network = RefineNet(2, 1, 8, levels=10).requires_grad_(False)
    score = continuous(network)
    x = torch.rand(1, 1, 8, 8)
    at, near = score(x, score.sigmas[4:5]), score(x, score.sigmas[4:5] * 1.0001)
    torch.testing.assert_close(at, near, rtol=0.01, atol=0.01 * float(at.abs().max()))
    c = (score.sigmas[4] ** 2 + 0.25) ** -0.5
    inner = network((1 + c * (x - 0.3)) / 2, torch.tensor([4]))
    expected = c * (0.5 / score.sigmas[4] * inner - c * (x - 0.3))
    torch.testing.assert_close(at, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("stranger", [9.0, 0.009, 0.0, -1.0, float("nan")])
def test_a_sigma_beyond_the_ends_is_refused(stranger):
    with pytest.raises(
        ValueError, match=r"outside of what this network was trained for, 0.01 to 8"
    ):
        continuous(AnswersWithZero())(torch.zeros(2, 1), torch.tensor([1.0, stranger]))


def test_a_continuous_score_needs_a_geometric_ladder_and_a_spread():
    with pytest.raises(ValueError, match="geometric"):
        ContinuousScore(
            AnswersWithZero(), torch.tensor([1.0, 0.9, 0.1]), data_mean=0.0, data_std=1.0
        )
    with pytest.raises(ValueError, match="two levels"):
        ContinuousScore(AnswersWithZero(), torch.tensor([1.0]), data_mean=0.0, data_std=1.0)
    with pytest.raises(ValueError, match="data_std"):
        continuous(AnswersWithZero(), data_std=0.0)


# --- a score that is a gradient ------------------------------------------------------------------


@pytest.fixture
def energy():
    torch.manual_seed(0)
    return EnergyScore(RefineNet(4, 1, 8, levels=3), geometric_ladder(levels=3))


def test_the_score_of_an_energy_is_its_downhill_slope(energy):
    sigma = energy.sigmas[[0, 1, 2]]
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-2
    with torch.no_grad():
        slope = (energy.energy(x + step * v, sigma) - energy.energy(x - step * v, sigma)) / 2 / step
        s = energy(x, sigma)
    torch.testing.assert_close((s * v).flatten(1).sum(1), -slope, rtol=0.02, atol=1e-3)


def test_the_energy_of_a_gaussian_is_its_negative_log_density():
    class Linear(nn.Module):
        def forward(self, x, level):
            return -(x - 0.3) / geometric_ladder()[level][:, None] ** 2

    score = EnergyScore(Linear(), geometric_ladder())
    sigma = geometric_ladder()
    x = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(score(x, sigma), -(x - 0.3) / sigma[:, None] ** 2)
    square = (x - 0.3).square().sum(1)
    torch.testing.assert_close(score.energy(x, sigma), square / (2 * sigma**2))


def test_the_jacobian_of_an_energys_score_is_symmetric_and_that_of_a_network_is_not(energy):
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = NoiseConditionalScore(energy.network, energy.sigmas)

    def share(score):
        J = jacobian(lambda y: score(y, score.sigmas[[1, 1]][: len(y)]), x)
        return ((J - J.mT) / 2).square().sum() / J.square().sum()

    assert share(energy) < 1e-6
    assert share(plain) > 0.01


def test_the_score_of_an_energy_reaches_the_parameters(energy):
    x = torch.rand(2, 1, 8, 8)
    energy(x, energy.sigmas[:2]).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in energy.parameters())
    assert energy.network.begin.weight.grad.abs().sum() > 0
