"""CUDA graphs: one launch in the place of thousands from Python, and the plain way behind it.

A small network keeps a large GPU waiting for Python.  A graph is captured once and replayed, on
other numbers in the same memory.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ncsn_core.networks import NoiseConditionalScore
from ncsn_core.randomness import generator_for
from ncsn_core.run import Run
from ncsn_core.training import draw

Call = Callable[..., Tensor]
Say = Callable[[str], None]


def graphed(call: Call, example: Sequence[Tensor]) -> Call:
    """A graph of a call.

    Args:
        call: computes on the GPU, and waits for nothing.
        example: arguments, of the shapes that all later ones have.
    """
    static = [t.clone() for t in example]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # compiles, and chooses algorithms
        for _ in range(3):
            call(*static)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(*static)

    def replay(*given: Tensor) -> Tensor:
        copy(given, static)
        graph.replay()
        return result.clone()

    return replay


def agreeing(
    call: Call, examples: Sequence[Sequence[Tensor]], state: list[Tensor], say: Say
) -> Call:
    """A graph of a call if it can be captured and gives the same; the call itself otherwise.

    Args:
        call: see `graphed`.
        examples: arguments, one set to capture with and others to compare on.
        state: what the call changes; it is left as it was.
        say: told why there is no graph.
    """
    saved = [t.clone() for t in state]

    def results(way: Call) -> list[Tensor]:
        copy(saved, state)
        first = way(*examples[1])
        moved = [(now - then).norm() for now, then in zip(state, saved, strict=True)]
        return [first, torch.tensor(moved), *(way(*example) for example in examples[2:])]

    try:
        expected = results(call)
        graph = graphed(call, examples[0])
        for found, wanted in zip(results(graph), expected, strict=True):
            if not (found - wanted).norm() <= 1e-3 * wanted.norm():
                raise ArithmeticError(
                    f"it answers {found.flatten()[:3].tolist()} and should "
                    f"answer {wanted.flatten()[:3].tolist()}"
                )
        return graph
    except Exception as error:  # whatever a driver, a compiler and a capture can do
        say(f"no graph: {first_line(error)}")
        return call
    finally:
        copy(saved, state)


def speed_up(run: Run, say: Say) -> str:
    """Replace `run.update` by a graph of it; how the run goes: "graph", "compiled" or "eager"."""
    plain, groups, device = run.update, run.optimizer.param_groups, run.score.sigmas.device
    rate = torch.full((), run.config.learning_rate, device=device)
    examples = []
    for seed in range(3):
        generator = generator_for(seed, 9, device=device)
        shape = (run.config.batch_size, *run.network.image_shape)
        x = torch.rand(shape, device=device, generator=generator)
        drawn = draw(run.config, run.score.sigmas, x, generator)
        examples.append((x, *(t for t in drawn if t is not None)))

    def step(x: Tensor, *drawn: Tensor) -> Tensor:
        for group in groups:
            group["lr"] = rate  # a number would be part of the graph
            group["capturable"] = x.is_cuda
        return plain(x, *drawn)

    parameters = [p.detach() for p in run.network.parameters()]
    before, new = [p.clone() for p in parameters], not run.optimizer.state
    if new:  # Adam makes its moments in the first step, as zeros
        step(*examples[0])
    moments = [t for slots in run.optimizer.state.values() for t in slots.values()]
    if new:
        copy(before, parameters)
        copy([torch.zeros_like(t) for t in moments], moments)
    graph = agreeing(step, examples, [*parameters, *moments], say)
    run.whole = True

    def update(x: Tensor, *drawn: Tensor | None) -> Tensor:
        rate.fill_(groups[0]["lr"])
        run.whole = False
        return graph(x, *(t for t in drawn if t is not None))

    if graph is step:
        for group in groups:
            group["capturable"] = False
        return "compiled" if run.origin["sessions"][-1]["compiled"] else "eager"
    run.update = update  # type: ignore[method-assign]
    return "graph"


@torch.no_grad()
def speed_up_score(score: NoiseConditionalScore, shape: tuple[int, ...], say: Say) -> bool:
    """Replace what a score runs at each evaluation by a graph, for batches of one shape."""
    device = score.sigmas.device
    levels = torch.arange(shape[0], device=device) % len(score.sigmas)
    examples = [
        (torch.rand(shape, device=device), (levels + i) % len(score.sigmas)) for i in (0, 1)
    ]
    plain = score._run
    score._run = agreeing(plain, examples, [], say)  # type: ignore[method-assign]
    return score._run is not plain


def copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    """Fill tensors in their places, which a graph knows."""
    for mine, theirs in zip(target, source, strict=True):
        mine.copy_(theirs)


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]
