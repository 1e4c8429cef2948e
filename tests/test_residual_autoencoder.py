"""The network of Figure 1: its shape as the paper gives it, and training it by slices."""

import pytest
import torch
from torch import nn

from ncsn_core.networks import ResidualAutoencoder, count_parameters, residual_autoencoder
from ncsn_core.objectives import sliced_score_matching_vr


def test_parameters_of_the_papers_network():
    """Convolutions with bias, 9·in·out + out numbers, and two numbers a filter in a GroupNorm."""

    def conv(before, after):
        return 9 * before * after + after

    def block(before, after, second):
        shortcut = conv(before, after) if before != after else 0
        return conv(before, after) + conv(second, after) + shortcut + 4 * after

    pairs = [(32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    encoder = sum(block(a, b, b) for a, b in pairs)
    decoder = sum(block(b, a, a) for a, b in pairs)
    expected = conv(3, 32) + encoder + decoder + conv(32, 3)
    assert count_parameters(ResidualAutoencoder(3, 32)) == expected == 1_379_651


def test_filters_and_resolutions_of_the_blocks():
    """32, 64, 64, 128, 128 filters, the second and the fourth at half the resolution; mirrored."""
    network, seen = ResidualAutoencoder(1, 8), []
    for block in [*network.encoder, *network.decoder]:
        block.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape[1:])))
    network(torch.rand(1, 1, 28, 28))
    down = [(8, 28, 28), (16, 14, 14), (16, 14, 14), (32, 7, 7), (32, 7, 7)]
    up = [(32, 7, 7), (16, 14, 14), (16, 14, 14), (8, 28, 28), (8, 28, 28)]
    assert seen == down + up


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 4, 8)])
def test_a_score_has_the_shape_of_the_image(shape):
    assert ResidualAutoencoder(shape[0], 8)(torch.rand(2, *shape)).shape == (2, *shape)


def test_black_and_white_enter_as_minus_one_and_one():
    network, seen = ResidualAutoencoder(1, 8), []
    network.first.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    network(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4))
    assert torch.equal(seen[0][:, 0, 0, 0], torch.tensor([-1.0, 1.0]))


def test_images_do_not_see_each_other():
    """Group normalization, unlike batch normalization: a score is a function of one image."""
    network, x = ResidualAutoencoder(1, 8), torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-5, rtol=1e-4)


def test_every_parameter_is_trained_by_sliced_score_matching():
    """Sliced score matching differentiates twice; the last bias enters by ½‖s‖² alone."""
    network = ResidualAutoencoder(1, 8)
    sliced_score_matching_vr(network, torch.rand(2, 1, 8, 8)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_normalizations_are_the_codes():
    norms = [m for m in ResidualAutoencoder(3).modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert {norm.num_groups for norm in norms} == {8}


@pytest.mark.parametrize("size", [(30, 28), (28, 30), (2, 4)])
def test_sizes_that_cannot_be_halved_twice_are_refused(size):
    with pytest.raises(ValueError, match="multiples of 4"):
        ResidualAutoencoder(1, 8)(torch.rand(1, 1, *size))


@pytest.mark.parametrize("width", [0, -8, 12])
def test_widths_that_have_no_eight_groups_are_refused(width):
    with pytest.raises(ValueError, match="multiple of 8"):
        ResidualAutoencoder(1, width)


def test_a_block_of_the_papers_kind_is_the_identity_where_its_convolutions_are_zero():
    """Pre-activation (He et al. 2016): nothing follows the sum."""
    block, x = residual_autoencoder.EncoderBlock(8, 8, True), torch.randn(2, 8, 4, 4)
    for conv in (m for m in block.main if isinstance(m, nn.Conv2d)):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    assert torch.equal(block(x), x)
    assert [type(m).__name__ for m in block.main] == [*("GroupNorm", "ELU", "Conv2d") * 2]
    network = ResidualAutoencoder(1, 8, preactivation=True)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)
