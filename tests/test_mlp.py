"""The multilayer perceptron, and networks that are stacked, evaluated and trained as one."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scores import explicit_jacobian, global_generator_untouched
from torch import nn

from ncsn_core.divergence import (
    TRACE_METHODS,
    exact_divergence,
    jacobian_vector,
    vector_jacobian,
)
from ncsn_core.networks import MLP, ConditionalMLP, Ensemble, count_parameters
from ncsn_core.objectives import denoising_score_matching, sliced_score_matching_vr
from ncsn_core.randomness import generator_for
from ncsn_core.schedules import draw_levels


def networks(members, dimension=3, hidden=5, seed=0):
    """Random networks in float64, each with its own parameters."""
    built = []
    for member in range(members):
        torch.manual_seed(100 * seed + member)
        built.append(MLP(dimension, hidden).double())
    return built


def points(count, dimension=3, seed=0):
    return torch.randn(count, dimension, dtype=torch.float64, generator=generator_for(seed))


def one_after_another(members, x):
    """What an ensemble should give: each member at its own share of the batch."""
    return torch.cat([f(part) for f, part in zip(members, x.chunk(len(members)), strict=True)])


def values(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


# --- the perceptron ----------------------------------------------------------------------------


def test_the_network_of_figure_2_has_17154_parameters():
    network = MLP(2)
    assert count_parameters(network) == 17_154
    layers = [(m.in_features, m.out_features) for m in network if isinstance(m, nn.Linear)]
    assert layers == [(2, 128), (128, 128), (128, 2)]


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({"dimension": 7}, [7, 128, 128, 7]),
        ({"dimension": 3, "hidden": 5}, [3, 5, 5, 3]),
        ({"dimension": 3, "hidden": 5, "layers": 4}, [3, 5, 5, 5, 5, 3]),
        ({"dimension": 3, "hidden": 5, "layers": 1, "outputs": 1}, [3, 5, 1]),
        ({"dimension": 3, "layers": 0}, [3, 3]),
    ],
)
def test_layers_have_the_widths_that_were_asked_for(options, widths):
    network = MLP(**options)
    linear = [m for m in network if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linear] == widths[:-1]
    assert [m.out_features for m in linear] == widths[1:]
    assert network(torch.zeros(4, widths[0])).shape == (4, widths[-1])


def test_the_network_is_affine_maps_with_softplus_between_them():
    (network,) = networks(1)
    x = points(6)
    first, second, third = (m for m in network if isinstance(m, nn.Linear))
    h = (1 + (x @ first.weight.T + first.bias).exp()).log()
    h = (1 + (h @ second.weight.T + second.bias).exp()).log()
    torch.testing.assert_close(network(x), h @ third.weight.T + third.bias)


def test_the_network_bends_everywhere():
    """Matching scores needs a second derivative that is not 0, as that of ReLU would be."""
    (network,) = networks(1)
    x = points(5).requires_grad_()
    (slope,) = torch.autograd.grad(network(x)[:, 0].sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    assert (bend.abs().sum(1) > 1e-6).all()


# --- evaluation --------------------------------------------------------------------------------


@given(members=st.integers(1, 4), share=st.integers(0, 3), seed=st.integers(0, 100))
def test_each_member_evaluates_its_own_share(members, share, seed):
    alone = networks(members, seed=seed)
    x = points(members * share, seed=seed)
    torch.testing.assert_close(Ensemble(alone)(x), one_after_another(alone, x))


def test_members_of_any_architecture_and_shape():
    def build():
        return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Softplus(), nn.Conv2d(2, 1, 1))

    alone = [build(), build()]
    x = torch.randn(6, 1, 4, 4)
    torch.testing.assert_close(Ensemble(alone)(x), one_after_another(alone, x))
    wide = [MLP(2, 4, outputs=5), MLP(2, 4, outputs=5)]
    x = torch.randn(6, 2)
    torch.testing.assert_close(Ensemble(wide)(x), one_after_another(wide, x))


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_points_that_cannot_be_shared_evenly_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} points cannot be shared by 3 members"):
        Ensemble(networks(3))(points(count))


def test_an_ensemble_needs_a_member():
    with pytest.raises(ValueError, match="at least one network"):
        Ensemble([])


def test_networks_with_buffers_are_refused():
    with pytest.raises(ValueError, match="cannot stack networks with buffers"):
        Ensemble([nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2)])


# --- derivatives -------------------------------------------------------------------------------


def test_the_gradient_of_the_summed_losses_is_every_members_own():
    alone, x = networks(3), points(12)
    ensemble = Ensemble(alone)
    ensemble(x).square().sum().backward()
    for network, part in zip(alone, x.chunk(3), strict=True):
        network(part).square().sum().backward()
    for stack, *own in zip(ensemble.stacked, *(n.parameters() for n in alone), strict=True):
        torch.testing.assert_close(stack.grad, torch.stack([p.grad for p in own]))


def test_a_loss_of_one_member_leaves_the_others_without_gradient():
    ensemble = Ensemble(networks(3))
    ensemble(points(12))[4:8].square().sum().backward()
    for stack in ensemble.stacked:
        assert stack.grad[1].abs().sum() > 0
        assert (stack.grad[[0, 2]] == 0).all()


def test_products_with_the_jacobian_are_every_members_own():
    alone, x, v = networks(3), points(6), points(6, seed=1)
    ensemble = Ensemble(alone)
    jacobians = torch.cat(
        [explicit_jacobian(f, part) for f, part in zip(alone, x.chunk(3), strict=True)]
    )
    _, forward = jacobian_vector(ensemble, x, v)  # torch.func.jvp
    torch.testing.assert_close(forward, torch.einsum("bij,bj->bi", jacobians, v))
    _, backward = vector_jacobian(ensemble, x, v)  # torch.func.vjp
    torch.testing.assert_close(backward, torch.einsum("bji,bj->bi", jacobians, v))


@pytest.mark.parametrize("method", TRACE_METHODS)
def test_traces_are_every_members_own(method):
    alone, x = networks(2), points(6)
    expected = torch.cat(
        [exact_divergence(f, part, "loop") for f, part in zip(alone, x.chunk(2), strict=True)]
    )
    torch.testing.assert_close(exact_divergence(Ensemble(alone), x, method), expected)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_training_through_a_derivative_gives_every_members_own_gradient(mode):
    """Double backward, and backward over forward: the gradient of SSM-VR in the parameters."""
    alone, x, v = networks(2), points(6), points(6, seed=1).unsqueeze(0)
    ensemble = Ensemble(alone)
    sliced_score_matching_vr(ensemble, x, v=v, mode=mode).sum().backward()
    for network, part, w in zip(alone, x.chunk(2), v.chunk(2, dim=1), strict=True):
        sliced_score_matching_vr(network, part, v=w, mode=mode).sum().backward()
    for stack, *own in zip(ensemble.stacked, *(n.parameters() for n in alone), strict=True):
        # the last bias moves the score and not its Jacobian; all of them have a gradient
        torch.testing.assert_close(stack.grad, torch.stack([p.grad for p in own]))
        assert stack.grad.abs().sum() > 0


def test_training_together_is_training_alone():
    """Twenty steps of Adam on the summed mean losses, each member with data of its own."""
    alone = networks(3)
    ensemble = Ensemble(alone)

    def train(network, batches):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for x in batches:
            target = torch.sin(3 * x)
            losses = (network(x) - target).square().sum(1)
            optimizer.zero_grad()
            (losses.sum() / 4).backward()
            optimizer.step()

    batches = [points(12, seed=step) for step in range(20)]
    before = values(ensemble)
    train(ensemble, batches)
    for index, network in enumerate(alone):
        train(network, [x.chunk(3)[index] for x in batches])
        for stack, start, own in zip(ensemble.stacked, before, network.parameters(), strict=True):
            torch.testing.assert_close(stack[index], own, rtol=1e-9, atol=1e-9)
            assert not torch.allclose(start[index], own)


# --- parameters and members --------------------------------------------------------------------


def test_the_parameters_are_the_members_and_nothing_else():
    ensemble = Ensemble(networks(3))
    assert count_parameters(ensemble) == 3 * count_parameters(MLP(3, 5))
    assert all(len(parameter) == 3 for parameter in ensemble.parameters())
    assert not list(ensemble.buffers())
    assert len(ensemble.state_dict()) == len(MLP(3, 5).state_dict())


def test_the_ensemble_has_parameters_of_its_own():
    """Training it leaves the networks that it was made from as they were, and the reverse."""
    alone = networks(2)
    before = [values(network) for network in alone]
    ensemble = Ensemble(alone)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.add_(1)
    for network, kept in zip(alone, before, strict=True):
        assert all(map(torch.equal, network.parameters(), kept))
    stacked = values(ensemble)
    with torch.no_grad():
        for parameter in alone[0].parameters():
            parameter.zero_()
    assert all(map(torch.equal, ensemble.parameters(), stacked))


def test_a_state_dict_restores_an_ensemble():
    ensemble, other, x = Ensemble(networks(2)), Ensemble(networks(2, seed=1)), points(4)
    assert not torch.allclose(ensemble(x), other(x))
    other.load_state_dict(ensemble.state_dict())
    assert torch.equal(ensemble(x), other(x))
    assert torch.equal(ensemble(x), copy.deepcopy(ensemble)(x))


def test_a_member_is_the_network_that_it_was():
    alone = networks(3)
    ensemble = Ensemble(alone)
    for index, network in enumerate(alone):
        member = ensemble.member(index)
        assert type(member) is MLP
        assert member.state_dict().keys() == network.state_dict().keys()
        assert all(map(torch.equal, member.parameters(), network.parameters()))
        assert not any(parameter.requires_grad for parameter in member.parameters())
    again = Ensemble([ensemble.member(index) for index in range(3)])
    assert all(map(torch.equal, again.parameters(), ensemble.parameters()))


def test_a_member_is_a_copy():
    ensemble = Ensemble(networks(2))
    member, x = ensemble.member(1), points(3)
    before = member(x)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.zero_()
    assert torch.equal(member(x), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_member_has_the_precision_of_the_ensemble(dtype):
    ensemble = Ensemble.of(lambda: MLP(2, 3), [0, 1]).to(dtype)
    x = torch.randn(4, 2, dtype=dtype)
    assert ensemble(x).dtype == dtype
    torch.testing.assert_close(ensemble.member(1)(x[2:]), ensemble(x)[2:])


# --- seeds -------------------------------------------------------------------------------------


def test_seeds_decide_the_members_whatever_came_before():
    torch.manual_seed(1)
    first = Ensemble.of(lambda: MLP(2, 4), [3, 4, 5])
    torch.rand(7)
    second = Ensemble.of(lambda: MLP(2, 4), [5, 3])
    assert first.members == 3
    for one, other in ((0, 1), (2, 0)):  # seeds 3 and 5
        pairs = zip(first.member(one).parameters(), second.member(other).parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)
    assert not torch.equal(first.stacked[0][0], first.stacked[0][1])


def test_a_seed_gives_the_network_that_manual_seed_gives():
    ensemble = Ensemble.of(lambda: MLP(2, 4), [3])
    torch.manual_seed(3)
    assert all(map(torch.equal, ensemble.member(0).parameters(), MLP(2, 4).parameters()))


def test_building_an_ensemble_leaves_the_global_generators_alone(monkeypatch):
    """That of the CPU, and those of GPUs, which torch.manual_seed would seed as well."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with global_generator_untouched():
        Ensemble.of(lambda: MLP(2, 4), [3, 4])
    assert not seeded


def test_initial_parameters_are_of_the_size_that_torch_gives_a_linear_layer():
    """Stacking must not initialize anew: uniform within 1/√(inputs), with variance 1/(3·inputs)."""
    ensemble = Ensemble.of(lambda: MLP(2), range(4))
    hidden = ensemble.stacked[2]
    assert hidden.shape == (4, 128, 128)
    assert hidden.abs().max() <= 1 / math.sqrt(128)
    assert hidden.var().item() == pytest.approx(1 / (3 * 128), rel=0.03)


# --- the noise-conditional network -------------------------------------------------------------


def test_conditional_network_is_its_formula():
    """s(x, σ) = f(x/√(r² + σ²), log σ)/σ."""
    network = ConditionalMLP(2, radius=5.0, hidden=6)
    x, sigma = torch.randn(4, 2), torch.tensor([0.1, 1.0, 3.0, 20.0])
    got = network(x, sigma)
    for row, point, level in zip(got, x, sigma, strict=True):
        told = torch.cat([point / (25 + level**2).sqrt(), level.log()[None]])
        torch.testing.assert_close(row, network.net(told[None])[0] / level)


def test_conditional_network_learns_the_score_of_every_level():
    """For N(0, I) it is −x/(1 + σ²): errors below a quarter of it (root mean square)."""
    torch.manual_seed(0)
    network = ConditionalMLP(2, hidden=32)
    sigmas, generator = torch.tensor([4.0, 2.0, 1.0, 0.5]), generator_for(0)
    optimizer = torch.optim.Adam(network.parameters(), 6e-3)
    for _ in range(500):
        x = torch.randn(128, 2, generator=generator)
        sigma = draw_levels(sigmas, 128, generator)
        loss = denoising_score_matching(network, x, sigma, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for sigma in sigmas:
        x = (1 + sigma**2).sqrt() * torch.randn(2000, 2, generator=generator)
        exact = -x / (1 + sigma**2)
        error = (network(x, sigma.expand(2000)) - exact).square().mean() / exact.square().mean()
        assert error.sqrt() < 0.25


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_conditional_network_wants_a_radius(radius):
    with pytest.raises(ValueError, match="radius"):
        ConditionalMLP(2, radius)
