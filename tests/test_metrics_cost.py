"""Costs of calls whose cost is known: bytes, seconds on a clock of our own, operations, slopes."""

import gc
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from ncsn_core.metrics.cost import (
    Cost,
    Slope,
    costs,
    flops,
    log_log_slope,
    peak_bytes,
    training_steps,
    wait,
)
from ncsn_core.networks import MLP
from ncsn_core.objectives import sliced_score_matching_vr

HELD = torch.ones(1000)  # 4,000 bytes that no call has to pay for


# --- memory ------------------------------------------------------------------------------------


def freed_before_the_next():
    first = torch.ones(1000)
    del first
    return torch.ones(500)


def freed_after_the_next():
    first = torch.ones(1000)
    second = torch.ones(500)
    del first
    return second, torch.ones(600)


def in_place():
    return torch.ones(1000).add_(1).mul_(2).exp_()


def views():
    x = torch.ones(1000)
    return x, x.reshape(10, 100).T[3:], x[::2], x.expand(7, 1000), x.detach()


def a_view_keeps_its_storage():
    corner = torch.ones(1000)[:1]
    return corner, torch.ones(100)


def chain_of_three(x):
    return x.exp().exp().exp()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: None, 0),
        (lambda: HELD, 0),
        (lambda: HELD.reshape(10, 100)[2:], 0),
        (lambda: HELD.add_(0), 0),
        (lambda: HELD + 1, 4000),
        (lambda: torch.ones(1000), 4000),
        (lambda: torch.ones(1000, dtype=torch.float64), 8000),
        (lambda: torch.ones(1000, dtype=torch.bool), 1000),
        (lambda: (torch.ones(1000), torch.ones(500)), 6000),
        (lambda: [torch.ones(1000) for _ in range(5)], 20_000),
        (lambda: (HELD + 1).sum(), 4004),
        (lambda: torch.ones(100, 7) @ torch.ones(7, 50), 4 * (700 + 350 + 5000)),
        (lambda: torch.vmap(lambda row: row + 1)(HELD.reshape(10, 100)), 4000),
        (freed_before_the_next, 4000),
        (freed_after_the_next, 6000),
        (in_place, 4000),
        (views, 4000),
        (a_view_keeps_its_storage, 4400),
        (lambda: chain_of_three(HELD), 8000),
    ],
)
def test_peak_bytes_is_the_most_that_is_held_at_once(call, expected):
    assert peak_bytes(call) == expected
    assert peak_bytes(call) == expected  # and nothing is left over from the first time


def test_what_autograd_saves_is_counted_until_it_is_freed():
    """exp saves its result: three of them with gradients, two at a time without."""
    x = torch.zeros(1000, requires_grad=True)
    assert peak_bytes(lambda: chain_of_three(x)) == 12_000

    def twice():
        chain_of_three(x)  # its graph is freed here
        return chain_of_three(x)

    assert peak_bytes(twice) == 12_000

    def without():
        with torch.no_grad():
            return chain_of_three(x)

    assert peak_bytes(without) == 8000


def test_checkpointing_saves_the_memory_that_it_promises():
    """Of n saved results of 4,000 bytes, √n segments of √n keep about 2√n."""
    x = torch.zeros(1000, requires_grad=True)

    def segment(y):
        for _ in range(6):
            y = torch.sin(torch.cos(y))
        return y

    def plain():
        y = x
        for _ in range(6):
            y = segment(y)
        return torch.autograd.grad(y.sum(), x)

    def checkpointed():
        y = x
        for _ in range(6):
            y = torch.utils.checkpoint.checkpoint(segment, y, use_reentrant=False)
        return torch.autograd.grad(y.sum(), x)

    assert peak_bytes(plain) >= 72 * 4000  # two results saved twelve times six
    assert peak_bytes(checkpointed) <= 24 * 4000
    assert torch.equal(plain()[0], checkpointed()[0])


@given(plan=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 300)), max_size=20))
def test_peak_bytes_follows_any_order_of_making_and_freeing(plan):
    """Five places, each filled with so many numbers in turn; what lay there is freed after."""

    def call():
        places = [None] * 5
        for place, size in plan:
            places[place] = torch.ones(size)

    sizes, peak = [0] * 5, 0
    for place, size in plan:
        peak = max(peak, sum(sizes) + size)  # the new one is made before the old one goes
        sizes[place] = size
    assert peak_bytes(call) == 4 * peak


def test_an_error_in_the_call_comes_through_and_does_no_harm():
    def broken():
        torch.ones(1000)
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        peak_bytes(broken)
    assert peak_bytes(lambda: torch.ones(1000)) == 4000


def test_a_storage_that_an_operation_returns_twice_is_counted_once():
    def halves(x):
        y = x + 1
        return y[:500], y[500:]

    library = torch.library.Library("ncsn_tests", "DEF")
    library.define("halves(Tensor x) -> (Tensor, Tensor)")
    library.impl("halves", halves, "CPU")
    try:
        assert peak_bytes(lambda: torch.ops.ncsn_tests.halves(HELD)) == 4000
    finally:
        library._destroy()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that holds 1,000 bytes, and a diary of what it is told."""
    diary = []
    told = {
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "memory_allocated": 1000,
        "max_memory_allocated": 1700,
    }
    for name, answer in told.items():

        def tell(device, name=name, answer=answer):
            diary.append((name, device.type))
            return answer

        monkeypatch.setattr(torch.cuda, name, tell)
    return diary


def test_peak_bytes_of_a_gpu_are_what_its_allocator_counts_beyond_what_was_held(gpu):
    assert peak_bytes(lambda: gpu.append(("call", "cuda")), "cuda") == 700
    assert gpu == [
        ("synchronize", "cuda"),
        ("reset_peak_memory_stats", "cuda"),
        ("memory_allocated", "cuda"),
        ("call", "cuda"),
        ("synchronize", "cuda"),
        ("max_memory_allocated", "cuda"),
    ]


# --- time --------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when a call says so, and a diary of the calls."""

    def __init__(self):
        self.now, self.diary = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, *durations):
        """A call that takes the given seconds in turn, the last of them for ever."""
        left = list(durations)

        def run():
            self.diary.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_calls_take_turns_and_none_is_run_more_often_than_another():
    clock = Clock()
    calls = {name: clock.call(name, 1.0) for name in "abc"}
    costs(calls, repeats=4, clock=clock)
    rounds = 1 + 4  # memory, repeats
    assert clock.diary == ["a", "b", "c"] * rounds


def test_seconds_are_those_of_the_counted_rounds():
    """The first run measures memory, warms up and does not count."""
    clock = Clock()
    calls = {
        "steady": clock.call("steady", 2.0),
        "slow start": clock.call("slow start", 100.0, 1.0, 2.0, 3.0),
    }
    found = costs(calls, repeats=3, clock=clock)
    assert list(found) == ["steady", "slow start"]
    assert found["steady"].seconds == (2.0, 2.0, 2.0)
    assert found["slow start"].seconds == (1.0, 2.0, 3.0)


def test_a_quick_call_is_run_once_more_and_then_until_its_time_can_be_read():
    """A quarter of a second: the first run does not count, two more fill half a second."""
    clock = Clock()
    calls = {name: clock.call(name, time) for name, time in (("a", 0.25), ("b", 0.75), ("c", 5.0))}
    found = costs(calls, repeats=2, shortest=0.5, clock=clock)
    assert [cost.seconds for cost in found.values()] == [(0.25,) * 2, (0.75,) * 2, (5.0,) * 2]
    assert clock.diary == ["a", "b", "c", *["a", "a", "a", "b", "b", "c"] * 2]


def test_a_quick_call_has_the_mean_of_its_later_runs():
    clock = Clock()
    memory, first, *counted = 100.0, 0.4, 0.2, 0.1, 0.3  # of which 0.6 fill half a second
    found = costs(
        {"a": clock.call("a", memory, first, *counted)}, repeats=1, shortest=0.5, clock=clock
    )
    assert found["a"].seconds == pytest.approx((0.2,))


def test_time_passes_on_the_real_clock():
    x = torch.ones(200, 200)
    found = costs({"once": lambda: x @ x, "often": lambda: [x @ x for _ in range(40)]}, repeats=3)
    assert 0 < found["once"].median < found["often"].median


def test_a_gpu_is_waited_for_and_a_cpu_is_not(gpu):
    wait(torch.device("cpu"))
    assert gpu == []
    wait(torch.device("cuda", 0))
    assert gpu == [("synchronize", "cuda")]


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_not_collected_meanwhile_and_afterwards_as_before(enabled):
    clock, during, before = Clock(), [], gc.isenabled()
    pass_time = clock.call("a", 0.75)

    def call():
        during.append(gc.isenabled())
        pass_time()

    try:
        (gc.enable if enabled else gc.disable)()
        costs({"a": call}, repeats=1, shortest=0.5, clock=clock)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert not any(during[1:])  # the first run measures memory


def test_costs_come_with_the_memory_of_each_call():
    found = costs(
        {"small": lambda: HELD + 1, "large": lambda: (HELD + 1, HELD + 2)}, repeats=1, shortest=0.0
    )
    assert found["small"].peak_bytes == 4000
    assert found["large"].peak_bytes == 8000


@pytest.mark.parametrize("repeats", [0, -1])
def test_a_measurement_without_a_repeat_is_refused(repeats):
    ran = []
    with pytest.raises(ValueError, match=f"at least one repeat; got {repeats}"):
        costs({"a": lambda: ran.append(1)}, repeats=repeats)
    assert not ran


def test_median_and_quartiles():
    cost = Cost(seconds=(5.0, 1.0, 4.0, 2.0, 3.0), peak_bytes=7)
    assert cost.median == 3.0
    assert cost.quartiles == (2.0, 4.0)
    assert Cost((1.0, 2.0), 0).median == 1.5
    assert Cost((1.0,), 0).quartiles == (1.0, 1.0)


# --- operations --------------------------------------------------------------------------------


def test_a_matrix_product_takes_two_operations_a_term():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert flops(lambda: (a @ b, a @ b)) == 4 * 3 * 5 * 7
    assert flops(lambda: a + 1) == 0


def test_a_linear_layers_step_takes_three_products():
    """One forward; for the gradient, one by the input and one by the weight."""
    layer, x = nn.Linear(4, 6), torch.randn(5, 4, requires_grad=True)
    forward = 2 * 5 * 4 * 6
    assert flops(lambda: layer(x)) == forward
    assert flops(lambda: layer(x).sum().backward()) == 3 * forward


def test_a_convolution_takes_two_operations_a_weight_and_pixel():
    layer = nn.Conv2d(3, 8, 5, padding=2)
    assert flops(lambda: layer(torch.ones(2, 3, 10, 12))) == 2 * (2 * 10 * 12) * 8 * 3 * 25


# --- training steps ----------------------------------------------------------------------------


def test_a_training_step_computes_the_gradient_of_the_mean_loss():
    network, x = MLP(2, hidden=4), torch.randn(6, 2)
    losses = {
        "squares": lambda s: s(x).square().sum(1),
        "sliced": lambda s: sliced_score_matching_vr(s, x, v=torch.ones(1, 6, 2)),
    }
    steps = training_steps(network, losses)
    assert list(steps) == list(losses)
    for name, loss in losses.items():
        expected = torch.autograd.grad(loss(network).sum() / 6, list(network.parameters()))
        for got, gradient in zip(steps[name](), expected, strict=True):
            torch.testing.assert_close(got, gradient)
        for got, again in zip(steps[name](), steps[name](), strict=True):  # nothing adds up
            torch.testing.assert_close(got, again)


def test_a_training_step_leaves_the_network_as_it_was():
    network, x = MLP(2, hidden=4), torch.randn(6, 2)
    network[0].weight.requires_grad_(False)
    network[0].bias.grad = torch.full((4,), 3.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step = training_steps(network, {"squares": lambda s: s(x).square().sum(1)})["squares"]
    gradients = step()
    assert len(gradients) == len(list(network.parameters())) - 1  # the frozen one has none
    assert (network[0].bias.grad == 3).all()
    assert all(p.grad is None for name, p in network.named_parameters() if name != "0.bias")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_parameter_that_a_loss_does_not_use_has_no_gradient():
    network = MLP(2, hidden=4)
    step = training_steps(network, {"first": lambda s: s[0](torch.ones(3, 2)).sum(1)})["first"]
    weight, bias, *others = step()
    torch.testing.assert_close(weight, torch.ones(4, 2))
    torch.testing.assert_close(bias, torch.ones(4))
    assert others == [None] * 4


# --- slopes ------------------------------------------------------------------------------------


@given(
    exponent=st.floats(-3, 3),
    factor=st.floats(1e-6, 1e6),
    x=st.lists(st.integers(1, 10_000).map(float), min_size=3, max_size=8, unique=True),
)
def test_an_exact_power_law_has_its_exponent_and_no_doubt(exponent, factor, x):
    slope = log_log_slope(x, [factor * v**exponent for v in x])
    for number in (slope.value, slope.low, slope.high):
        assert number == pytest.approx(exponent, abs=1e-6)


def test_a_cost_that_does_not_grow_has_slope_zero_without_doubt():
    assert log_log_slope([1.0, 2.0, 4.0], [7.0] * 3) == Slope(0.0, 0.0, 0.0)


def test_slope_and_interval_are_the_textbooks():
    """b = Sxy/Sxx and b ± t₀.₉₇₅ √(RSS/(n − 2)/Sxx), with t = 4.303 for two degrees of freedom."""
    x, y = [1.0, 2.0, 4.0, 8.0], [1.0, 2.5, 3.5, 9.0]
    u, v = np.log(x) - np.log(x).mean(), np.log(y) - np.log(y).mean()
    b = (u @ v) / (u @ u)
    margin = 4.302653 * math.sqrt(((v - b * u) ** 2).sum() / 2 / (u @ u))
    slope = log_log_slope(x, y)
    assert slope.value == pytest.approx(b, rel=1e-12)
    assert slope.low == pytest.approx(b - margin, rel=1e-6)
    assert slope.high == pytest.approx(b + margin, rel=1e-6)
    reference = stats.linregress(np.log(x), np.log(y))
    assert slope.value == pytest.approx(reference.slope, rel=1e-12)
    assert margin == pytest.approx(4.302653 * reference.stderr, rel=1e-9)


def test_units_do_not_change_a_slope():
    x, y = [1.0, 2.0, 4.0, 8.0], [1.0, 2.5, 3.5, 9.0]
    slope = log_log_slope(x, y)
    other = log_log_slope([60 * v for v in x], [1e-3 * v for v in y])
    for got, expected in zip(vars(other).values(), vars(slope).values(), strict=True):
        assert got == pytest.approx(expected, rel=1e-9)
    assert log_log_slope(x, [1 / v for v in y]).value == pytest.approx(-slope.value)


def test_the_interval_holds_the_truth_nineteen_times_in_twenty():
    """2,000 experiments of five points about y = 3 x²; the margins are four standard errors."""
    random = np.random.default_rng(0)
    x = [2.0, 4.0, 8.0, 16.0, 32.0]
    below = above = 0
    for noise in 0.3 * random.standard_normal((2000, 5)):
        slope = log_log_slope(x, (3 * np.square(x) * np.exp(noise)).tolist())
        below += slope.high < 2
        above += slope.low > 2
    assert 1 - (below + above) / 2000 == pytest.approx(0.95, abs=0.02)
    assert below / 2000 == pytest.approx(0.025, abs=0.014)
    assert above / 2000 == pytest.approx(0.025, abs=0.014)


@pytest.mark.parametrize(
    ("x", "y", "complaint"),
    [
        ([], [], "at least 3 pairs; got 0, 0"),
        ([1.0, 2.0], [1.0, 2.0], "at least 3 pairs; got 2, 2"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "got 3, 2"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], "got 3, 4"),
        ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], "positive numbers"),
        ([1.0, 2.0, 3.0], [1.0, -2.0, 3.0], "positive numbers"),
        ([1.0, 2.0, 3.0], [1.0, math.nan, 3.0], "positive numbers"),
        ([1.0, 2.0, math.inf], [1.0, 2.0, 3.0], "positive numbers"),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], "two different x"),
    ],
)
def test_points_that_have_no_slope_are_refused(x, y, complaint):
    with pytest.raises(ValueError, match=complaint):
        log_log_slope(x, y)
