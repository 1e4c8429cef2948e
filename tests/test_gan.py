"""The adversarial pair: shapes, the two losses, and a game that the generator can win."""

import math

import pytest
import torch
from torch import nn

from ncsn_core.baselines.gan import Discriminator, Generator, discriminator_loss, generator_loss
from ncsn_core.networks import count_parameters
from ncsn_core.randomness import generator_for

# --- the networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 6, 14, 28])
@pytest.mark.parametrize("normalize", [True, False])
def test_noise_becomes_an_image_and_an_image_a_logit(size, normalize):
    generator = Generator(4, size, latent=5, normalize=normalize)
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, 1, size, size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert Discriminator(4, size, normalize=normalize)(images).shape == (3,)


def test_parameters_of_the_networks():
    c, latent, half = 4, 5, 7
    linear = (latent + 1) * 2 * c * half**2
    convolutions = (9 * 2 * c + 1) * 2 * c + 16 * 2 * c * c + c + (9 * c + 1)
    norms = 2 * (2 * c + 2 * c + c)
    assert count_parameters(Generator(c, 14, latent)) == linear + convolutions + norms
    assert count_parameters(Generator(c, 14, latent, normalize=False)) == linear + convolutions
    expected = (16 + 1) * c + (9 * c + 1) * 2 * c + 2 * c * 4**2 + 1
    assert count_parameters(Discriminator(c, 14)) == expected + 2 * 2 * c
    assert count_parameters(Discriminator(c, 14, normalize=False)) == expected


def test_weights_start_as_radford_et_al_chose():
    torch.manual_seed(0)
    generator = Generator(32)
    weights = [m.weight for m in generator.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for weight in weights[:2]:
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    scales = [m.weight for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(scales) == 3
    assert all(abs(scale.mean() - 1) < 0.02 for scale in scales)


def test_black_and_white_enter_the_discriminator_as_minus_one_and_one():
    network, seen = Discriminator(2, 4), []
    network.layers.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    network(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4))
    assert torch.equal(seen[0][:, 0, 0, 0], torch.tensor([-1.0, 1.0]))


def test_a_trained_generator_gives_an_image_whatever_its_neighbors():
    generator = Generator(4, 6).eval()
    z = torch.randn(5, 64)
    torch.testing.assert_close(generator(z)[:2], generator(z[:2]))


def test_samples_are_images_of_noise_from_the_generator_that_was_given():
    network = Generator(4, 6).eval()
    images = network.sample(3, generator_for(1))
    torch.testing.assert_close(images, network(torch.randn(3, 64, generator=generator_for(1))))


@pytest.mark.parametrize("size", [2, 7, 0])
def test_sizes_that_cannot_be_halved_are_refused(size):
    for network in (Generator, Discriminator):
        with pytest.raises(ValueError, match=f"even and at least 4; got {size}"):
            network(4, size)


def test_networks_without_channels_are_refused():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        Discriminator(0)
    with pytest.raises(ValueError, match="got 4 and 0"):
        Generator(4, latent=0)


# --- the losses ---------------------------------------------------------------------------------


def test_losses_are_the_formulas_in_probabilities():
    real, fake = torch.tensor([-1.0, 0.0, 3.0]), torch.tensor([2.0, -4.0, 0.5])
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    torch.testing.assert_close(discriminator_loss(real, fake), -d_real.log() - (1 - d_fake).log())
    torch.testing.assert_close(generator_loss(fake), -d_fake.log())


def test_a_discriminator_that_cannot_tell_loses_log_4():
    zero = torch.zeros(2)
    torch.testing.assert_close(discriminator_loss(zero, zero), torch.full((2,), math.log(4)))
    torch.testing.assert_close(generator_loss(zero), torch.full((2,), math.log(2)))


def test_the_generators_gradient_survives_where_the_discriminator_wins():
    """The saturating loss log(1 − D) has slope −D, which vanishes there; this one has D − 1."""
    logit = torch.tensor([-30.0], requires_grad=True)
    generator_loss(logit).sum().backward()
    torch.testing.assert_close(logit.grad, torch.tensor([-1.0]))


# --- the game -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_generator_learns_the_mean_image():
    """Data: one picture, half black and half white.  The images come near it within 200 steps.

    Without normalization, which would make a batch of equal pictures vanish.
    """
    torch.manual_seed(0)
    picture = torch.zeros(1, 1, 4, 4)
    picture[..., 2:] = 1
    generator = Generator(8, 4, latent=4, normalize=False)
    discriminator = Discriminator(8, 4, normalize=False)
    players = [
        torch.optim.Adam(network.parameters(), 2e-3, betas=(0.5, 0.999))
        for network in (generator, discriminator)
    ]
    before = (generator.sample(32) - picture).abs().mean()
    for _ in range(200):
        real, fake = picture.expand(32, -1, -1, -1), generator.sample(32)
        loss = discriminator_loss(discriminator(real), discriminator(fake.detach())).mean()
        players[1].zero_grad()
        loss.backward()
        players[1].step()
        players[0].zero_grad()
        generator_loss(discriminator(fake)).mean().backward()
        players[0].step()
    after = (generator.sample(32) - picture).abs().mean()
    assert before > 0.4
    assert after < 0.1
