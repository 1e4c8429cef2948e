"""Kinds of devices that are not at hand, by what they lack; their names: `test_training.py`."""

import math

import pytest
import torch
from torch import Tensor

from ncsn_core import distributions, pretrained, samplers
from ncsn_core.metrics import images
from ncsn_core.metrics.samples import Recorder, autocorrelation_time, binned, intrinsic_dimension
from ncsn_core.networks import ContinuousScore
from ncsn_core.parametrizations import score_from_noise
from ncsn_core.randomness import generator_for
from ncsn_core.samplers import State, log_likelihood, solve_probability_flow
from ncsn_core.schedules import geometric_ladder


@pytest.fixture
def no_float64(monkeypatch):
    """As on an Apple GPU: only what was moved to the CPU before is ever made float64."""
    double, cpu, on_cpu = Tensor.double, Tensor.cpu, []

    def move(x, *arguments):
        on_cpu.append(cpu(x, *arguments))
        return on_cpu[-1]

    def widen(x):
        if not any(x is seen for seen in on_cpu):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return double(x)

    monkeypatch.setattr(Tensor, "cpu", move)
    monkeypatch.setattr(Tensor, "double", widen)
    with pytest.raises(TypeError, match="MPS"):
        torch.ones(1).double()


def pull(x, sigma):
    return -x / (1 + sigma.reshape(-1, 1) ** 2)


def recorder():
    seen = Recorder(geometric_ladder(levels=2), 1, torch.ones(1, 2, 2, dtype=torch.bool))
    for level in range(2):
        seen(0, State(level, 0, 1.0, 0.1, torch.rand(2, 1, 2, 2), torch.ones(2, 1, 2, 2)))
    return seen.tensors()["snr"]


NEEDS_FLOAT64 = {
    "ContinuousScore": lambda x: (
        ContinuousScore(torch.nn.Identity(), geometric_ladder(), data_mean=0.0, data_std=1.0).sigmas
    ),
    "Recorder": lambda x: recorder(),
    "solve_probability_flow": lambda x: solve_probability_flow(pull, x, 1.0, 0.1).x,
    "log_likelihood": lambda x: (
        log_likelihood(pull, x, 1.0, 0.1, lambda y: -y.square().sum(1)).log_p
    ),
    "autocorrelation_time": lambda x: torch.tensor(autocorrelation_time(x)),
    "binned": lambda x: binned(*x.T.contiguous(), [-9.0, 0.0, 9.0]).mean,
    "intrinsic_dimension": lambda x: torch.tensor(intrinsic_dimension(x, 5)),
    "frechet_distance": lambda x: torch.tensor(images.frechet_distance(x, x + 1)),
    "kernel_distance": lambda x: torch.tensor(images.kernel_distance(x, x + 1, subset_size=9)),
    "score_from_noise": lambda x: score_from_noise(lambda y, t: y, torch.linspace(0.99, 0.01, 9))(
        x, torch.ones(len(x))
    ),
    "Curve": lambda x: distributions.ring().score(x, 0.5),
    "Checkerboard": lambda x: distributions.Checkerboard(4).log_density(x, 0.5),
}


@pytest.mark.parametrize("name", NEEDS_FLOAT64)
def test_float64_is_made_on_the_cpu_alone(name, no_float64):
    x = torch.randn(50, 2, generator=generator_for(0))
    found = NEEDS_FLOAT64[name](x)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


@pytest.mark.slow
def test_a_network_in_float16_answers_as_in_float32():
    """Mixed precision as `16-mixed` has it, on a Colab T4: from the widest noise to the finest."""
    model = pretrained.load("mnist14_ncsn")
    plain, half = model.score(), model.score(autocast=torch.float16)
    x = torch.rand(10, 1, 14, 14, generator=generator_for(0))
    expected, found = plain(x, plain.sigmas), half(x, half.sigmas)
    assert found.dtype == torch.float32
    error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert error.max() < 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_ladder_of_a_record_serves_beside_a_score_on_a_gpu():
    model = pretrained.load("mnist14_ncsn")
    score, x = model.score("cuda"), torch.rand(2, 1, 14, 14, device="cuda")
    found = samplers.annealed_langevin(score, x, model.sigmas, steps_per_level=1)
    assert found.is_cuda
    assert math.isfinite(found.sum())
    assert score(x, model.sigmas[:2]).is_cuda
