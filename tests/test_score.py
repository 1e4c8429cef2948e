"""From σ to a level index: the score that wraps the network."""

import pytest
import torch
from torch import nn

from ncsn_core.networks import NoiseConditionalScore, RefineNet
from ncsn_core.schedules import geometric_ladder


class AnswersItsLevel(nn.Module):
    """A network that fills its output with the level index, and takes part in autocast."""

    def forward(self, x, level):
        return torch.zeros_like(x) + level.reshape(-1, *[1] * (x.ndim - 1))


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
