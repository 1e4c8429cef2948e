"""Random scores, explicit Jacobians and standard errors: what several test modules share."""

import contextlib
import math

import jaxtyping
import torch
from hypothesis import strategies as st
from torch import nn

from ncsn_core.distributions import GaussianMixture
from ncsn_core.networks import MLP
from ncsn_core.randomness import generator_for
from ncsn_core.schedules import per_sample

# Neither symmetric nor antisymmetric; its trace, 1, is not the sum of its entries, 18.
MATRIX = torch.tensor([[1.0, 2.0, -1.0], [6.0, -3.0, 4.0], [1.0, 5.0, 3.0]], dtype=torch.float64)

MIXTURE_COVARIANCES = torch.tensor(
    [[[1.0, 0.6], [0.6, 0.8]], [[0.5, 0.0], [0.0, 1.5]]], dtype=torch.float64
)
MIXTURE = GaussianMixture.from_covariances(  # two modes that overlap
    means=torch.tensor([[-1.0, 0.0], [1.5, 1.0]], dtype=torch.float64),
    covariances=MIXTURE_COVARIANCES,
    weights=torch.tensor([0.3, 0.7], dtype=torch.float64),
)


def network(shape, seed=0):
    """A smooth random score of samples of this shape, in float64; its Jacobian has no symmetry."""
    dimension = math.prod(shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inner = MLP(dimension, hidden=7)
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.mul_(2)
    return nn.Sequential(nn.Flatten(), inner, nn.Unflatten(1, shape)).double()


def one_level(x, sigma):
    """The same σ for each sample of x, [batch]."""
    return x.new_full(x.shape[:1], sigma)


def points(batch, shape, seed=0, dtype=torch.float64):
    return torch.randn(batch, *shape, dtype=dtype, generator=generator_for(seed, 1))


def point_mass(x, sigma):
    """∇ log q_σ of data that is always 0: −x/σ²."""
    return -x / per_sample(sigma, x) ** 2


@st.composite
def cases(draw, smallest_batch=0):
    """(score, x): vectors or images, in batches that may be single or empty."""
    sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
    shape = tuple(draw(sizes.filter(lambda sizes: math.prod(sizes) <= 12)))
    batch = draw(st.integers(smallest_batch, 3))
    seed = draw(st.integers(0, 2**16))
    return network(shape, seed), points(batch, shape, seed)


def linear(matrix):
    """The score x → Ax of vectors."""
    return lambda x: x @ matrix.mT


def explicit_jacobian(score, x, create_graph=False):
    """J [batch, D, D] by torch.autograd, one sample alone at a time; row i belongs to sᵢ."""
    dimension = math.prod(x.shape[1:])
    blocks = [
        torch.autograd.functional.jacobian(
            lambda z: score(z.unsqueeze(0)).squeeze(0), y, create_graph=create_graph
        ).reshape(dimension, dimension)
        for y in x
    ]
    return torch.stack(blocks) if blocks else x.new_zeros(0, dimension, dimension)


def scaled_basis(x, seed=0):
    """D orthogonal directions of length √D: over them, the mean of v vᵀ is I without noise."""
    dimension = math.prod(x.shape[1:])
    gaussian = torch.randn(dimension, dimension, dtype=x.dtype, generator=generator_for(seed, 2))
    basis = torch.linalg.qr(gaussian).Q * dimension**0.5
    return basis.reshape(dimension, 1, *x.shape[1:]).expand(dimension, *x.shape)


def within(values, expected, errors=4.0):
    """Whether the mean of each column is as expected, within so many standard errors."""
    values = values.double()
    standard_error = values.std(0) / len(values) ** 0.5
    return bool(((values.mean(0) - expected).abs() <= errors * standard_error + 1e-12).all())


@contextlib.contextmanager
def without_type_checks():
    """Let a wrong argument reach the library's own check, as it does outside of the tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@contextlib.contextmanager
def global_generator_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.cos()

    generate_vmap_rule = True


def sine_without_forward_mode(x):
    """sin x, which refuses to be differentiated in forward mode."""
    return _Sine.apply(x)
