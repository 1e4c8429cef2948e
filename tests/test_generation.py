"""Drawing many samples in batches."""

import math
import shutil

import pytest
import torch
from tqdm.auto import tqdm

from ncsn_core import generation, pretrained
from ncsn_core.data import to_bytes
from ncsn_core.errors import CorruptFileError, NCSNError, UnknownNameError
from ncsn_core.generation import draw_batch, options_for, runaways, sample, samplers
from ncsn_core.metrics.samples import Recorder
from ncsn_core.networks import NoiseConditionalScore
from ncsn_core.randomness import generator_for
from ncsn_core.samplers import SAMPLERS, State, annealed_langevin, inpaint
from ncsn_core.schedules import geometric_ladder

SIGMAS = geometric_ladder(1.0, 0.1, 3)
IMAGE, STEPS = (1, 2, 2), 3


class PointMass(torch.nn.Module):
    """−x/σ² by level index, counting the images that it is asked for."""

    images = 0
    image_shape = IMAGE

    def forward(self, x, level):
        self.images += len(x)
        return -x / SIGMAS[level].reshape(-1, 1, 1, 1) ** 2


@pytest.fixture
def score():
    return NoiseConditionalScore(PointMass(), SIGMAS)


def draw(score, count=5, **options):
    small = {"batch_size": 2, "epsilon": 2e-3, "steps_per_level": STEPS, "progress": False}
    return sample(score, count, **small | options)


def test_a_batch_is_annealed_langevin_from_uniform_noise(score):
    got = draw(score, count=2, seed=4)
    generator = generator_for(4, 0)
    start = torch.rand(2, 1, 2, 2, generator=generator)
    expected = annealed_langevin(
        score, start, SIGMAS, epsilon=2e-3, steps_per_level=3, generator=generator
    )
    assert torch.equal(got, expected)


def test_a_batch_is_a_function_of_seed_index_and_size(score):
    batches = [draw_batch(score, 3, i, 2, epsilon=2e-3, steps_per_level=STEPS) for i in (1, 0, 1)]
    assert torch.equal(batches[0], batches[2])
    assert torch.equal(torch.cat([batches[1], batches[0]]), draw(score, count=4, seed=3))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_as_many_samples_and_evaluations_as_asked(score, count):
    samples = draw(score, count, denoise=True)
    assert samples.shape == (count, 1, 2, 2)
    assert samples.isfinite().all()
    assert score.network.images == count * (3 * 3 + 1)


def test_more_samples_leave_the_first_full_batches_as_they_are(score):
    assert torch.equal(draw(score, count=7)[:4], draw(score, count=4))


def test_samples_differ_between_chains_batches_and_seeds(score):
    samples = draw(score, count=6)
    assert len(samples.flatten(1).unique(dim=0)) == 6
    assert not torch.equal(samples, draw(score, count=6, seed=1))
    assert torch.equal(samples, draw(score, count=6))


def test_callback_is_told_where_the_batch_belongs(score):
    collected = torch.full((5, 1, 2, 2), float("nan"))
    steps = []

    def keep(first, state):
        steps.append((first, state.level, state.step))
        collected[first : first + len(state.x)] = state.x

    samples = draw(score, count=5, callback=keep)
    assert torch.equal(samples, collected)
    assert steps == [(f, i, t) for f in (0, 2, 4) for i in range(3) for t in range(3)]


def test_progress_bar_counts_the_evaluations(score, capsys):
    draw(score, count=3, progress=True)
    shown = capsys.readouterr().err
    assert "sampling" in shown
    assert "18/18" in shown
    assert "images/s" in shown


def test_the_bar_shows_images_a_second(score, monkeypatch):
    """Of four chains, five of ten evaluations in two seconds: one image a second."""
    moments = iter([10.0, 11.0, 11.25, 11.5, 11.75, 12.0])
    monkeypatch.setattr(generation.time, "monotonic", lambda: next(moments))
    bar, shown = tqdm(total=10, disable=True), []
    monkeypatch.setattr(bar, "update", lambda: setattr(bar, "n", bar.n + 1))
    monkeypatch.setattr(bar, "set_postfix_str", lambda text, refresh: shown.append(text))
    watch = generation._watch(bar, 10, 0, None)
    x = torch.zeros(4, *IMAGE)
    for step in range(5):
        watch(State(0, step, 1.0, 0.1, x, x))
    assert shown[0] == "0.4 images/s"
    assert shown[-1] == "1 images/s"


def test_a_hundred_chains_are_drawn_at_a_time_unless_told_otherwise(score):
    quick = {"steps_per_level": 1, "progress": False}
    hundreds = sample(score, 101, batch_size=100, **quick)
    assert torch.equal(sample(score, 101, **quick), hundreds)


@pytest.mark.parametrize("options", [{"count": 0}, {"count": -1}, {"batch_size": 0}])
def test_counts_below_one_are_refused(score, options):
    with pytest.raises(ValueError, match="at least 1"):
        draw(score, **options)


# --- streaming to a folder ---------------------------------------------------------------------


class Interruption(Exception):
    """Stands for a machine that goes away."""


def stop_at(sample, level):
    def callback(first, state):
        if (first, state.level) == (sample, level):
            raise Interruption

    return callback


def test_a_folder_changes_no_sample(score, tmp_path):
    assert torch.equal(draw(score, count=5, folder=tmp_path / "new" / "folder"), draw(score, 5))


def test_an_interrupted_run_goes_on_and_ends_like_an_undisturbed_one(score, tmp_path):
    with pytest.raises(Interruption):
        draw(score, count=7, folder=tmp_path, callback=stop_at(4, level=1))
    score.network.images = 0
    resumed = draw(score, count=7, folder=tmp_path)
    assert score.network.images == 3 * 9  # the third batch again, and the fourth
    assert torch.equal(resumed, draw(score, count=7))


def test_each_batch_is_on_disk_before_the_next_begins(score, tmp_path):
    stored = {}

    def look(first, state):
        stored.setdefault(first, len(list(tmp_path.glob("batch_*"))))

    draw(score, count=5, folder=tmp_path, callback=look)
    assert stored == {0: 0, 2: 1, 4: 2}


def test_a_finished_folder_is_read_without_an_evaluation(score, tmp_path, capsys):
    first = draw(score, count=5, folder=tmp_path)
    score.network.images = 0
    observed = []
    again = draw(
        score, 5, folder=tmp_path, progress=True, callback=lambda *seen: observed.append(seen)
    )
    assert torch.equal(first, again)
    assert score.network.images == 0
    assert observed == []


def test_more_samples_keep_the_full_batches_of_a_folder(score, tmp_path):
    draw(score, count=5, folder=tmp_path)
    score.network.images = 0
    more = draw(score, count=8, folder=tmp_path)
    assert score.network.images == 4 * 9  # not the first two batches; the third had one chain
    assert torch.equal(more, draw(score, count=8))
    assert torch.equal(draw(score, count=5, folder=tmp_path), draw(score, count=5))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"epsilon": 1e-3},
        {"steps_per_level": 2},
        {"denoise": True},
        {"batch_size": 3},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_folder_of_other_settings_is_refused(score, tmp_path, changes):
    draw(score, folder=tmp_path)
    score.network.images = 0
    with pytest.raises(NCSNError, match=rf"other settings \({next(iter(changes))} differ\)"):
        draw(score, folder=tmp_path, **changes)
    assert score.network.images == 0
    assert torch.equal(draw(score, folder=tmp_path), draw(score))


def test_a_folder_of_other_weights_or_another_ladder_is_refused(score, tmp_path):
    class Scaled(PointMass):
        def __init__(self, scale):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(scale))

    draw(NoiseConditionalScore(Scaled(1.0), SIGMAS).requires_grad_(False), folder=tmp_path)
    other = NoiseConditionalScore(Scaled(1.5), SIGMAS).requires_grad_(False)
    with pytest.raises(NCSNError, match=r"\(weights differ\)"):
        draw(other, folder=tmp_path)
    ladder = NoiseConditionalScore(Scaled(1.0), SIGMAS * 2).requires_grad_(False)
    with pytest.raises(NCSNError, match=r"\(sigmas differ\)"):
        draw(ladder, folder=tmp_path)


def test_a_folder_of_something_else_is_left_alone(score, record, tmp_path):
    with pytest.raises(NCSNError, match="kind 'ncsn' and no samples"):
        draw(score, folder=record.folder)
    pretrained.load(record.folder).tensors()
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.pdf").write_bytes(b"x")
    with pytest.raises(NCSNError, match="holds other files and no record"):
        draw(score, folder=tmp_path / "papers")


def test_a_damaged_batch_is_named_and_can_be_drawn_again(score, tmp_path):
    draw(score, folder=tmp_path)
    place = tmp_path / "batch_00001_of_2"
    (file,) = place.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match="batch_00001_of_2 holds a damaged batch"):
        draw(score, folder=tmp_path)
    shutil.rmtree(place)
    assert torch.equal(draw(score, folder=tmp_path), draw(score))


# --- the recorder --------------------------------------------------------------------------------


def test_the_recorder_keeps_ends_frames_dark_pixels_and_ratios(score):
    dark = torch.zeros(IMAGE, dtype=torch.bool)
    dark[..., 0] = True
    recorder = Recorder(SIGMAS, STEPS, dark, chains=2, frames=100)
    states = []

    def observe(first, state):
        states.append(
            (first, state.level, state.step, state.step_size, state.x.clone(), state.score)
        )
        recorder(first, state)

    draw(score, count=5, callback=observe)
    found = recorder.tensors()
    levels = len(SIGMAS)

    assert found["ends"].shape == (2, levels, *IMAGE)
    assert found["ends"].dtype == torch.float16
    last = {level: x for first, level, step, _, x, _ in states if first == 0 and step == STEPS - 1}
    for level in range(levels):
        assert torch.equal(found["ends"][:, level], last[level].half())
    assert found["frames"].shape == (levels * STEPS, 2, *IMAGE)
    assert torch.equal(found["frames"][-1], to_bytes(last[levels - 1]))

    for level in range(levels):
        ends = torch.cat([x for _, i, step, _, x, _ in states if i == level and step == STEPS - 1])
        pixels = ends[:, dark].double()
        assert float(found["dark_mean"][level]) == pytest.approx(float(pixels.mean()), abs=1e-6)
        deviation = float(pixels.std(correction=0))
        assert float(found["dark_std"][level]) == pytest.approx(deviation, rel=1e-5)
        ratios = torch.cat(
            [
                alpha / 2 * s.flatten(1).norm(dim=1) / math.sqrt(alpha * x[0].numel())
                for _, i, _, alpha, x, s in states
                if i == level
            ]
        )
        assert float(found["snr"][level]) == pytest.approx(float(ratios.mean()), rel=1e-5)


def test_fewer_frames_are_spread_over_the_whole_run(score):
    recorder = Recorder(SIGMAS, STEPS, torch.ones(IMAGE, dtype=torch.bool), chains=1, frames=3)
    draw(score, count=3, callback=recorder)
    assert recorder.moments == {0, (len(SIGMAS) * STEPS - 1) // 2, len(SIGMAS) * STEPS - 1}
    assert recorder.tensors()["frames"].shape[0] == 3
    recorder = Recorder(SIGMAS, STEPS, torch.ones(IMAGE, dtype=torch.bool), frames=0)
    draw(score, count=3, callback=recorder)
    assert recorder.tensors().keys() == {"ends", "dark_mean", "dark_std", "snr"}


# --- other samplers, and a number of evaluations ------------------------------------------------


def test_the_samplers_are_those_of_the_library_that_need_no_more_than_a_score():
    assert set(samplers()) == set(SAMPLERS) - {"langevin", "mala", "inpaint"}


@pytest.mark.parametrize("budget", [4, 5, 9, 30, 31])
@pytest.mark.parametrize("name", samplers())
def test_a_sampler_keeps_to_its_number_of_evaluations(score, name, budget):
    """At most so many; and no level more would have fitted, where the sampler can take more."""
    options = options_for(name, score.sigmas, budget)
    sample(score, 2, sampler=name, progress=False, **options)
    asked = score.network.images // 2
    assert asked <= budget
    fixed = {"consistent_annealed": 4, "probability_flow": 5 if budget >= 5 else 3}
    assert asked == fixed.get(name, asked)
    assert asked > budget - len(SIGMAS) or name in fixed


@pytest.mark.parametrize("name", [*samplers(), "inpaint"])
def test_too_few_evaluations_for_the_ladder_are_refused_with_the_least(name):
    least = 3 if name in ("reverse_diffusion", "probability_flow") else 4
    with pytest.raises(NCSNError, match=f"{name} needs at least {least} .* got {least - 1}"):
        options_for(name, SIGMAS, least - 1)
    options_for(name, SIGMAS, least)


def test_evaluations_of_inpainting_are_those_of_algorithm_1(score):
    options = options_for("inpaint", score.sigmas, 10)
    assert options == options_for("annealed_langevin", score.sigmas, 10)
    known = torch.ones(IMAGE, dtype=torch.bool)
    x = torch.rand(1, *IMAGE)
    assert torch.equal(inpaint(score, x, score.sigmas, images=x, known=known, **options), x)
    assert score.network.images == 10


def test_a_hundred_steps_a_level_go_as_far_as_the_papers():
    sigmas = geometric_ladder()
    langevin = options_for("annealed_langevin", sigmas, 1001)
    assert langevin == {"steps_per_level": 100, "epsilon": pytest.approx(2e-5), "denoise": True}
    corrected = options_for("reverse_diffusion", sigmas, 1010)
    assert corrected == {"corrector_steps": 100, "snr": pytest.approx(0.05**0.5)}
    few = options_for("annealed_langevin", sigmas, 100)
    assert (few["steps_per_level"], few["epsilon"]) == (9, pytest.approx(1e-4))


def test_samples_of_another_sampler_resume_and_are_told_apart(score, tmp_path):
    other = {"sampler": "reverse_diffusion", "batch_size": 2, "progress": False}
    whole = sample(score, 4, **other)
    assert torch.equal(sample(score, 2, folder=tmp_path, **other), whole[:2])
    assert torch.equal(sample(score, 4, folder=tmp_path, **other), whole)
    with pytest.raises(NCSNError, match=r"other settings \(.*sampler.* differ\)"):
        sample(score, 4, folder=tmp_path, **other | {"sampler": "probability_flow"})


def test_an_unknown_sampler_or_option_or_one_that_lacks_is_named(score):
    with pytest.raises(UnknownNameError, match="unknown sampler 'ddim'; known: annealed_lang"):
        sample(score, 1, sampler="ddim")
    with pytest.raises(UnknownNameError, match="unknown sampler 'ddim'; known: annealed_lang"):
        options_for("ddim", SIGMAS, 100)
    with pytest.raises(UnknownNameError, match="unknown option of annealed_langevin 'snr'"):
        sample(score, 1, snr=0.1)
    with pytest.raises(NCSNError, match="consistent_annealed needs the option 'epsilon'"):
        sample(score, 1, sampler="consistent_annealed")


def test_chains_that_ran_away_are_counted():
    x = torch.full((5, 1, 2, 2), 0.5)
    x[0, 0, 0, 0], x[1, 0, 1, 1], x[2, 0, 0, 1] = 2.01, -math.inf, math.nan
    x[3, 0, 1, 0] = -0.99
    assert runaways(x) == 3
