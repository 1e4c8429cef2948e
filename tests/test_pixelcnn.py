"""The PixelCNN: what a pixel may see, that the probabilities add up, that it learns."""

import itertools
import math

import pytest
import torch

from ncsn_core.baselines.pixelcnn import MaskedConv2d, PixelCNN
from ncsn_core.randomness import generator_for


def scrambled(**options):
    """A small PixelCNN with random biases and large weights, so that nothing vanishes by chance."""
    torch.manual_seed(0)
    network = PixelCNN(**{"channels": 8, "blocks": 2, "values": 3} | options).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5)
    return network


# --- causality ----------------------------------------------------------------------------------


def test_masks_hide_what_comes_later():
    a, b = (MaskedConv2d(1, 1, 3, own=own).mask.int().tolist() for own in (False, True))
    assert a == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert b == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 6), (5, 2)])
def test_no_output_depends_on_its_own_pixel_or_a_later_one(height, width):
    network = scrambled()
    x = torch.rand(1, 1, height, width, dtype=torch.float64)
    D = height * width
    jacobian = torch.autograd.functional.jacobian(network, x)
    jacobian = jacobian.reshape(network.values, D, D)
    assert (jacobian.triu() == 0).all()
    neighbors = jacobian[:, torch.arange(1, D), torch.arange(D - 1)]  # of the pixel just before
    inside = torch.arange(1, D) % width > 0
    assert (neighbors[:, inside].abs().amax(0) > 1e-9).all()


def test_the_first_pixel_is_drawn_from_constants():
    network = scrambled()
    black, white = (
        network(torch.zeros(1, 1, 3, 3).double()),
        network(torch.ones(1, 1, 3, 3).double()),
    )
    torch.testing.assert_close(black[..., 0, 0], white[..., 0, 0])


# --- likelihood ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "height", "width"), [(2, 2, 2), (3, 2, 2), (2, 1, 6), (2, 3, 3)]
)
def test_the_probabilities_of_all_images_sum_to_1(values, height, width):
    network = scrambled(values=values)
    levels = itertools.product(range(values), repeat=height * width)
    every = torch.tensor(list(levels)).reshape(-1, 1, height, width)
    network = network.float()
    total = network.log_likelihood(every).double().exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_log_likelihood_is_the_chain_rule_pixel_by_pixel():
    network = scrambled(values=3).float()
    x = torch.randint(3, (2, 1, 3, 3))
    by_hand = torch.zeros(2)
    for i in range(9):
        seen = x.flatten(1).clone()
        seen[:, i:] = 0  # whatever stands there must not matter
        logits = network(seen.reshape(x.shape).float() / 2).flatten(2)[:, :, i]
        by_hand += logits.log_softmax(1)[torch.arange(2), x.flatten(1)[:, i]]
    torch.testing.assert_close(network.log_likelihood(x), by_hand)


# --- samples ------------------------------------------------------------------------------------


def test_samples_have_the_models_probabilities():
    """Each of the 16 binary images of 2×2, in 4000 samples, within 4.5 standard errors."""
    network = scrambled(values=2).float()
    samples = network.sample(4000, 2, 2, generator=generator_for(0))
    every = torch.tensor(list(itertools.product(range(2), repeat=4))).reshape(-1, 1, 2, 2)
    expected = network.log_likelihood(every).exp()
    code = (samples.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    found = torch.bincount(code, minlength=16) / 4000
    error = (expected * (1 - expected) / 4000).sqrt()
    assert ((found - expected).abs() <= 4.5 * error + 1e-3).all()


def test_a_sample_takes_an_evaluation_for_each_pixel():
    network, calls = scrambled().float(), []
    network.register_forward_hook(lambda *args: calls.append(None))
    network.sample(2, 3, 4)
    assert len(calls) == 12
    assert network.sample(2, 3, 4, pixels=5).flatten(1)[:, 5:].eq(0).all()
    assert len(calls) == 17


# --- training -----------------------------------------------------------------------------------


def test_it_learns_stripes_down_to_their_entropy():
    """Rows all black or all white: ln 2 a row of 4 pixels, from 4 ln 2 before training."""
    torch.manual_seed(0)
    network = PixelCNN(16, 1, values=2)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)

    def stripes(count):
        return torch.randint(2, (count, 1, 4, 1)).expand(-1, -1, -1, 4)

    before = -network.log_likelihood(stripes(200)).mean()
    for _ in range(120):
        loss = -network.log_likelihood(stripes(32)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = -network.log_likelihood(stripes(200)).mean()
    entropy = 4 * math.log(2)
    assert before > 2.5 * entropy
    assert entropy * 0.99 < after < 1.15 * entropy


@pytest.mark.parametrize("wrong", [{"channels": 7}, {"channels": 0}, {"blocks": -1}, {"values": 1}])
def test_impossible_networks_are_refused(wrong):
    with pytest.raises(ValueError, match="a PixelCNN needs"):
        PixelCNN(**wrong)
