"""The RefineNet against an independent network, its published sizes, and its fast paths."""

import functools
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from plain import CondRefineNetDilated
from torch import nn
from weights import randomized, relative_error

from ncsn_core.convert import from_authors
from ncsn_core.devices import can_compile
from ncsn_core.networks import RefineNet, count_parameters
from ncsn_core.networks.refinenet import (
    ConditionalInstanceNormPlus,
    _by_kernel,
    _in_two_passes,
    box_average,
    instance_norm_plus,
    normalize,
    rows,
)


def modules(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


# --- against the reference network -------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "image_channels", "image_size", "levels"),
    [(4, 1, 28, 10), (6, 3, 32, 10), (3, 1, 20, 4), (4, 2, 6, 2)],
    ids=["mnist", "cifar10", "20x20", "6x6"],
)
def test_same_weights_give_the_outputs_of_the_reference_network(
    channels, image_channels, image_size, levels
):
    reference = randomized(CondRefineNetDilated(channels, image_channels, levels))
    network = RefineNet(channels, image_channels, image_size, levels)
    network.load_state_dict(from_authors(reference.state_dict()))
    x = torch.rand(3, image_channels, image_size, image_size)
    level = torch.tensor([0, levels - 1, levels // 2])

    with torch.no_grad():
        assert relative_error(network(x, level), reference(x, level)) < 1e-5


def test_the_branch_for_28_pixels_changes_nothing():
    """The authors' code builds stage 4 differently for MNIST, in a way that nothing there reads."""
    plain = randomized(CondRefineNetDilated(3, 1, 4))
    branch = CondRefineNetDilated(3, 1, 4, adjusted=4)
    assert branch.state_dict().keys() == plain.state_dict().keys()
    branch.load_state_dict(plain.state_dict())
    x, level = torch.rand(2, 1, 28, 28), torch.tensor([0, 3])
    with torch.no_grad():
        assert torch.equal(branch(x, level), plain(x, level))
    # In the stage that pools it would have changed even the names.
    pooling = CondRefineNetDilated(3, 1, 4, adjusted=2)
    assert pooling.state_dict().keys() != plain.state_dict().keys()


def test_gradients_agree_with_the_reference_network():
    reference = randomized(CondRefineNetDilated(3, 1, 2))
    network = RefineNet(3, 1, 12, 2)
    network.load_state_dict(from_authors(reference.state_dict()))
    x, level = torch.rand(2, 1, 12, 12), torch.tensor([0, 1])
    network(x, level).square().sum().backward()
    reference(x, level).square().sum().backward()

    expected = from_authors({name: p.grad for name, p in reference.named_parameters()})
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5 * scale)


def test_comparison_notices_a_changed_weight():
    reference = randomized(CondRefineNetDilated(3, 1, 2))
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    network = RefineNet(3, 1, 12, 2)
    network.load_state_dict(from_authors(state))
    x, level = torch.rand(2, 1, 12, 12), torch.tensor([0, 1])
    with torch.no_grad():
        expected = network(x, level)
        for name in list(state)[::7]:
            changed = {name: state[name] + 0.1 * torch.randn_like(state[name])}
            reference.load_state_dict(state | changed)
            assert relative_error(reference(x, level), expected) > 1e-4, name


# --- what the paper counts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "image_channels", "image_size", "parameters"),
    [(64, 1, 28, 7_638_657), (128, 3, 32, 30_117_635)],
    ids=["mnist", "cifar10"],
)
def test_published_sizes(channels, image_channels, image_size, parameters):
    with torch.device("meta"):
        network = RefineNet(channels, image_channels, image_size, levels=10)
        reference = CondRefineNetDilated(channels, image_channels, classes=10)

    assert count_parameters(network) == count_parameters(reference) == parameters
    assert len(modules(network, nn.Conv2d)) == 75
    assert len(modules(network, ConditionalInstanceNormPlus)) == 71


def test_count_parameters_leaves_frozen_ones_out():
    layer = nn.Linear(3, 5)
    assert count_parameters(layer) == 20
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 15


def test_initial_embeddings_are_the_papers():
    torch.manual_seed(0)
    norms = modules(RefineNet(32, 1, 28, 10), ConditionalInstanceNormPlus)
    for part in ("gamma", "alpha"):
        rows = torch.cat([getattr(norm, part).detach().flatten() for norm in norms])
        assert float(rows.mean()) == pytest.approx(1.0, abs=1e-3)
        assert float(rows.std()) == pytest.approx(0.02, rel=0.02)
    assert all(not norm.beta.any() for norm in norms)


def test_every_parameter_is_used():
    network = RefineNet(2, 1, 8, levels=2)
    network(torch.rand(2, 1, 8, 8), torch.tensor([0, 1])).square().sum().backward()
    assert [name for name, p in network.named_parameters() if not p.grad.any()] == []


# --- what goes in and out ----------------------------------------------------------------------


def test_output_depends_on_the_level_and_on_the_own_image_only():
    network = randomized(RefineNet(3, 1, 12, 3))
    x = torch.rand(1, 1, 12, 12).expand(3, -1, -1, -1)
    with torch.no_grad():
        together = network(x, torch.tensor([0, 1, 2]))
        alone = network(x[:1], torch.tensor([1]))
    assert not torch.allclose(together[0], together[1], rtol=1e-2)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_inputs_are_not_modified():
    network, x, level = RefineNet(2, 1, 8, 2), torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    before = x.clone(), level.clone()
    network(x, level)
    assert torch.equal(x, before[0])
    assert torch.equal(level, before[1])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"image_size": 27}, "even"),
        ({"image_size": 2}, "at least 4"),
        ({"channels": 1}, "channels >= 2"),
        ({"image_channels": 0}, "image_channels >= 1"),
        ({"levels": 0}, "levels >= 1"),
    ],
)
def test_impossible_sizes_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        RefineNet(**{"channels": 4} | arguments)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 28, 28)])
def test_images_of_another_shape_are_refused(shape):
    network = RefineNet(2, 1, 28, 2)
    with pytest.raises(ValueError, match=r"\(1, 28, 28\)"):
        network(torch.rand(shape), torch.tensor([0, 1]))


# --- normalization -----------------------------------------------------------------------------


def norm_formula(x, gamma, beta, alpha):
    """The docstring of `instance_norm_plus` in float64, channel by channel."""
    x, gamma, beta, alpha = (t.double() for t in (x, gamma, beta, alpha))
    y = torch.empty_like(x)
    for b in range(x.shape[0]):
        m = torch.stack([channel.mean() for channel in x[b]])
        for k in range(x.shape[1]):
            normalized = (x[b, k] - m[k]) / (x[b, k].var(correction=0) + 1e-5).sqrt()
            brightness = (m[k] - m.mean()) / (m.var(correction=1) + 1e-5).sqrt()
            y[b, k] = gamma[b, k] * (normalized + alpha[b, k] * brightness) + beta[b, k]
    return y


def norm_arguments(batch=3, channels=5, size=6):
    x = 2 * torch.randn(batch, channels, size, size) + torch.randn(batch, channels, 1, 1)
    gamma, beta, alpha = torch.randn(3, batch, channels)
    return x, gamma, beta, alpha


FAST = {
    "by kernel": _by_kernel,
    "in two passes": _in_two_passes,
    "eager": functools.partial(normalize, compiled=False),
}
every_fast_form = pytest.mark.parametrize("fast", FAST.values(), ids=FAST.keys())


def test_normalization_is_its_formula():
    x, gamma, beta, alpha = norm_arguments()
    expected = norm_formula(x, gamma, beta, alpha).float()
    torch.testing.assert_close(instance_norm_plus(x, gamma, beta, alpha), expected)


@every_fast_form
@pytest.mark.parametrize("elu", [False, True])
@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_every_fast_form_is_the_formula_and_has_its_gradients(fast, elu, means, memory):
    """With an ELU after it or without, with the means or without, however it lies in memory."""
    results = []
    for form in (instance_norm_plus, fast):
        torch.manual_seed(0)
        x, *coefficients = (t.requires_grad_() for t in norm_arguments())
        gamma, beta, alpha = coefficients[0], coefficients[1], coefficients[2] if means else None
        given = (x.to(memory_format=memory), gamma, beta, alpha)
        if form is instance_norm_plus:
            y = F.elu(form(*given)) if elu else form(*given)
        else:
            y = form(*given, elu=elu)
        y.square().sum().backward()
        results.append([y.detach(), *(t.grad for t in (x, gamma, beta, alpha) if t is not None)])
    for got, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@every_fast_form
def test_fast_forms_keep_bfloat16_with_statistics_in_float32(fast):
    """A mean of 40 with a spread of 1, of which bfloat16 would leave nothing in a square."""
    x, *coefficients = norm_arguments(size=16)
    x = (x + 40).bfloat16()
    got = fast(x, *coefficients, elu=False)
    expected = norm_formula(x.float(), *coefficients)
    assert got.dtype == torch.bfloat16
    assert relative_error(got.double(), expected) < 0.01


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # torch's forward mode loads it
@pytest.mark.parametrize("compiled", [False, True])
def test_a_forward_derivative_takes_the_form_whose_second_derivative_is_right(compiled):
    """Not torch's own kernel; and not the compiler's, which has no forward mode."""
    x, *coefficients = norm_arguments()
    v = torch.randn_like(x)

    def product(form):
        at = x.clone().requires_grad_()
        _, along = torch.func.jvp(form, (at,), (v,))
        (gradient,) = torch.autograd.grad(along.square().sum(), at)
        return along.detach(), gradient

    got = product(lambda y: normalize(y, *coefficients, elu=False, compiled=compiled))
    expected = product(lambda y: instance_norm_plus(y, *coefficients))
    for mine, formula in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, formula, rtol=1e-3, atol=1e-3)


def test_without_alpha_it_is_plain_instance_normalization():
    x, gamma, beta, _ = norm_arguments()
    expected = norm_formula(x, gamma, beta, torch.zeros_like(gamma)).float()
    torch.testing.assert_close(instance_norm_plus(x, gamma, beta), expected)


def test_alpha_alone_sees_the_brightness_of_the_feature_maps():
    """A constant added to one channel disappears in plain instance normalization."""
    x, gamma, beta, alpha = norm_arguments(batch=1)
    brighter = x.clone()
    brighter[:, 0] += 3.0
    plain = [instance_norm_plus(image, gamma, beta) for image in (x, brighter)]
    plus = [instance_norm_plus(image, gamma, beta, alpha) for image in (x, brighter)]
    torch.testing.assert_close(*plain, rtol=1e-4, atol=1e-4)
    assert (plus[0] - plus[1]).abs().max() > 0.1


def test_keep_means_off_builds_a_network_without_alpha():
    network = RefineNet(2, 1, 8, 2, keep_means=False)
    norms = modules(network, ConditionalInstanceNormPlus)
    assert len(norms) == 71
    assert all(norm.alpha is None for norm in norms)
    assert network(torch.rand(1, 1, 8, 8), torch.tensor([0])).isfinite().all()


COMPARE_COMPILED_WITH_EAGER = """
import torch
from torch.nn.functional import elu
from ncsn_core.networks.refinenet import instance_norm_plus, normalize

torch.manual_seed(0)
x = 2 * torch.randn(3, 5, 6, 6) + torch.randn(3, 5, 1, 1)
gamma, beta, alpha = torch.randn(3, 3, 5)
outputs, gradients = [], []
for compiled in (None, False, True):
    leaves = [t.clone().requires_grad_() for t in (x, gamma, beta, alpha)]
    if compiled is None:
        y = elu(instance_norm_plus(*leaves))
    else:
        y = normalize(*leaves, elu=True, compiled=compiled)
    y.square().sum().backward()
    outputs.append(y.detach())
    gradients.append([leaf.grad for leaf in leaves])
formula, eager, compiled = outputs
torch.testing.assert_close(eager, formula, rtol=1e-5, atol=1e-5)
torch.testing.assert_close(compiled, formula, rtol=1e-5, atol=1e-5)
for formula, eager, compiled in zip(*gradients):
    torch.testing.assert_close(eager, formula, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled, formula, rtol=1e-4, atol=1e-4)
print("agree")
"""


@pytest.mark.slow
@pytest.mark.serial
def test_compiled_normalization_agrees_with_the_eager_one():
    """In a process of its own: the compiler cannot see through run-time shape checks."""
    if not can_compile(torch.device("cpu")):
        pytest.skip("torch.compile needs a C++ compiler")
    process = subprocess.run(
        [sys.executable, "-c", COMPARE_COMPILED_WITH_EAGER],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.stdout == "agree\n", process.stderr


def test_without_normalization_only_scale_and_shift_are_left():
    """A feature map of any mean and variance comes out as γ x + β, compiled or not."""
    network = RefineNet(2, 1, 8, levels=3, normalize=False)
    network.compile_normalizations()
    norms = modules(network, ConditionalInstanceNormPlus)
    assert all(norm.alpha is None for norm in norms)
    norm = norms[0]
    x, level = 5 + 3 * torch.randn(2, 2, 4, 4), torch.tensor([0, 2])
    torch.nn.init.normal_(norm.beta)
    gamma, beta = (t[level][:, :, None, None] for t in (norm.gamma, norm.beta))
    torch.testing.assert_close(norm(x, level), F.elu(gamma * x + beta))


def test_compile_normalizations_switches_all_of_them():
    network = RefineNet(2, 1, 8, 2)
    network.compile_normalizations()
    assert all(norm.compiled for norm in modules(network, ConditionalInstanceNormPlus))
    network.compile_normalizations(False)
    assert not any(norm.compiled for norm in modules(network, ConditionalInstanceNormPlus))


# --- pooling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (1, 1, 4, 6), (2, 2, 2, 2)])
def test_box_average_is_the_librarys_average_pooling(shape, width):
    x = torch.randn(shape, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    got, expected = box_average(x, width), F.avg_pool2d(twin, width, 1, width // 2)
    torch.testing.assert_close(got, expected)

    direction = torch.randn(shape)
    (got * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


# --- bfloat16 ----------------------------------------------------------------------------------


def test_first_and_last_convolution_stay_in_float32_under_autocast():
    network = RefineNet(2, 1, 8, 2)
    seen = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: output.dtype})
            )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = network(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))

    assert seen.pop("begin") == seen.pop("end") == torch.float32
    assert len(seen) == 73
    assert set(seen.values()) == {torch.bfloat16}
    assert y.dtype == torch.float32


def test_first_convolution_does_not_round_its_input():
    """At 2x − 1 = −1, rounding to bfloat16 would swallow most of a noise of σ_L = 0.01."""
    network = RefineNet(2, 1, 8, 2)
    outputs = []
    network.begin.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    x = 0.01 * torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        network(x, torch.tensor([0, 1]))
        with torch.autocast("cpu", torch.bfloat16):
            network(x, torch.tensor([0, 1]))
    assert torch.equal(*outputs)


def test_bfloat16_changes_the_loss_by_little():
    sigma, level = 0.01, torch.zeros(16, dtype=torch.int64)
    network = RefineNet(4, 1, 12, 1).requires_grad_(False)
    network.end.weight.mul_(0.5 / sigma)  # the size of a trained score
    z = torch.randn(16, 1, 12, 12)

    def loss():
        residual = network(sigma * z, level) + z / sigma
        return float(0.5 * sigma**2 * residual.square().flatten(1).sum(1).mean())

    exact = loss()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss()
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)


# --- noise between two levels -------------------------------------------------------------------


def test_whole_indices_in_floating_point_are_the_levels():
    torch.manual_seed(0)
    network = RefineNet(2, 1, 8, levels=3).requires_grad_(False)
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(
        network(x, torch.tensor([0.0, 1.0, 2.0])), network(x, torch.tensor([0, 1, 2]))
    )


def test_rows_are_interpolated_and_their_gradient_is_shared():
    table = torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 0.0]], requires_grad=True)
    got = rows(table, torch.tensor([0.25, 1.5, 2.0]))
    assert got.tolist() == [[0.5, 2.0], [3.0, 2.5], [4.0, 0.0]]
    got[0].sum().backward()
    assert table.grad.tolist() == [[0.75, 0.75], [0.25, 0.25], [0.0, 0.0]]
