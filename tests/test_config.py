"""Presets, profiles and the values that a training configuration accepts."""

import dataclasses
import json
import math

import numpy as np
import pytest

from ncsn_core.config import (
    TrainingConfig,
    load_config,
    load_evaluation_budget,
    presets,
    profiles,
    read_yaml,
    typed,
)
from ncsn_core.data import DATASETS
from ncsn_core.errors import UnknownNameError


@pytest.mark.parametrize("profile", profiles())
@pytest.mark.parametrize("preset", presets())
def test_every_preset_loads_under_every_profile(preset, profile):
    config = load_config(preset, profile)
    assert (config.preset, config.profile) == (preset, profile)
    assert config.dataset in DATASETS
    assert config.sigmas.shape == (config.levels,)
    assert config.checkpoint_every % config.log_every == 0


def test_presets_and_profiles_are_the_promised_ones():
    assert presets() == ("mnist", "fashion_mnist", "cifar10", "celeba")
    assert profiles() == ("smoke", "cpu", "gpu")


@pytest.mark.parametrize(
    ("preset", "channels", "shape", "flip"),
    [
        ("mnist", 64, (1, 28), False),
        ("fashion_mnist", 64, (1, 28), False),
        ("cifar10", 128, (3, 32), True),
        ("celeba", 128, (3, 32), True),
    ],
)
def test_gpu_profile_is_the_papers_setting(preset, channels, shape, flip):
    config = load_config(preset, "gpu")
    assert config.channels == channels
    assert (config.image_channels, config.image_size) == shape
    assert config.flip is flip
    assert (config.sigma_max, config.sigma_min, config.levels) == (1.0, 0.01, 10)
    assert (config.steps, config.batch_size, config.learning_rate) == (200_000, 128, 1e-3)
    assert (config.rate_schedule, config.gradient_clip) == ("constant", None)
    assert (config.weight_power, config.keep_means, config.train_images) == (2.0, True, None)
    assert config.checkpoint_every == 5000


def test_overrides_replace_single_values():
    config = load_config("mnist", "smoke", steps=7, gradient_clip=1.0)
    assert dataclasses.replace(load_config(), steps=7, gradient_clip=1.0) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "mnits"}, "unknown preset 'mnits'; known: mnist, fashion_mnist, cifar10"),
        ({"preset": ""}, "unknown preset ''; known: mnist"),
        ({"preset": "a\0b"}, "unknown preset .*; known: mnist"),
        ({"preset": "a" * 5000}, "unknown preset 'aaa.*; known: mnist"),
        ({"profile": "tpu"}, "unknown profile 'tpu'; known: smoke, cpu, gpu"),
        ({"learning_rte": 1e-3}, "unknown setting 'learning_rte'; known: .*learning_rate"),
        ({"rate_schedule": "linear"}, "'linear'; known: constant, cosine"),
    ],
)
def test_unknown_names_list_the_known_ones(arguments, message):
    with pytest.raises(UnknownNameError, match=message):
        load_config(**arguments)


def test_a_path_stands_where_a_preset_does(tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros((5, 10, 12, 3), np.uint8))
    config = load_config(str(tmp_path / "mine.npy"), "cpu", image_size=8, steps=7)
    assert (config.preset, config.dataset) == ("own", str(tmp_path / "mine.npy"))
    assert (config.image_size, config.image_channels, config.channels) == (8, 1, 16)
    assert (config.steps, config.batch_size, config.flip) == (7, 4, False)


def test_every_profile_has_a_budget_for_evaluation_and_others_are_refused():
    budgets = [load_evaluation_budget(profile) for profile in profiles()]
    counts = [budget.samples for budget in budgets]
    assert counts == sorted(set(counts))
    assert all(budget.batch_size <= budget.samples for budget in budgets)
    with pytest.raises(UnknownNameError, match="unknown profile 'tpu'; known: smoke, cpu, gpu"):
        load_evaluation_budget("tpu")


def check(**changes):
    """Run a configuration's own checks, also where a run-time type checker guards `__init__`."""
    config = object.__new__(TrainingConfig)
    for name, value in (load_config().to_dict() | changes).items():
        object.__setattr__(config, name, value)
    config.__post_init__()


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("steps", "30", "a whole number"),
        ("steps", 30.0, "a whole number"),
        ("steps", True, "a whole number"),
        ("steps", None, "a whole number"),
        ("learning_rate", "fast", "a number"),
        ("learning_rate", False, "a number"),
        ("flip", 1, "true or false"),
        ("flip", "yes", "true or false"),
        ("dataset", 3, "a word"),
        ("train_images", 1.5, "a whole number or null"),
        ("gradient_clip", "1", "a number or null"),
    ],
)
def test_a_value_of_another_type_is_refused(name, value, accepted):
    with pytest.raises(ValueError, match=f"{name} must be {accepted}; got {value!r}"):
        check(**{name: value})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"checkpoint_every": -5}, "checkpoint_every must be at least 1"),
        ({"log_every": 4, "checkpoint_every": 10}, "multiple of log_every; got 10 and 4"),
        ({"rate_schedule": "constant", "decay_steps": 16}, r"\[0, 15\], at 15 steps.*got 16"),
        ({"rate_schedule": "cosine", "decay_steps": 1}, r"\[0, 0\], at 15 steps of a cosine rate"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"ema_decay": -0.1}, "ema_decay"),
        ({"ema_decay": math.nan}, "ema_decay"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite"),
        ({"learning_rate": math.inf}, "learning_rate must be positive and finite"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite"),
        ({"gradient_clip": 0.0}, "gradient_clip must be positive and finite"),
        ({"rate_schedule": "linear"}, "unknown rate_schedule 'linear'"),
        ({"objective": "sliding"}, "unknown objective 'sliding'.*denoising.*sliced"),
        ({"parametrization": "density"}, "unknown parametrization 'density'.*score.*energy"),
        ({"sigma_max": 0.001}, "decrease"),
        ({"sigma_min": 0.0}, "positive"),
        ({"sigma_max": math.inf}, "finite"),
        ({"levels": 0}, "1 to 100,000; got 0"),
        ({"weight_power": math.nan}, "weight_power"),
        ({"data_std": 0.0}, "data_std must be positive and finite"),
        ({"parametrization": "continuous", "conditional": False}, "told the noise level"),
        ({"parametrization": "continuous", "objective": "sliced"}, "trained by denoising"),
        ({"parametrization": "continuous", "data_mean": math.nan}, "data_mean must be finite"),
        (
            {"parametrization": "continuous", "levels": 1, "sigma_max": 0.01},
            "at least two levels",
        ),
        ({"train_images": 0}, "train_images"),
        ({"train_images": -1}, "train_images"),
    ],
)
def test_a_value_out_of_range_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_config(**changes)


def test_whole_numbers_are_accepted_where_a_number_is():
    config = load_config(learning_rate=1, gradient_clip=5, sigma_max=1, ema_decay=0)
    assert config == load_config(learning_rate=1.0, gradient_clip=5.0, sigma_max=1.0, ema_decay=0.0)


def test_round_trip_through_json():
    config = load_config("cifar10", "cpu", gradient_clip=0.5, seed=3)
    assert TrainingConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config().steps = 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        (".5e-3", 5e-4),
        ("5.e-3", 5e-3),
        ("-2.5E-1", -0.25),
        ("2e4", 20_000),
        ("1_000", 1000),
        ("010", 10),
        ("0.5", 0.5),
        ("true", True),
        ("1e", "1e"),
    ],
)
def test_numbers_are_read_as_people_write_them(text, value):
    found = read_yaml(f"setting: {text}")["setting"]
    assert (found, type(found)) == (value, type(value))


# --- parameters of notebooks --------------------------------------------------------------------


JSON = {"steps": 5, "flip": True, "learning_rate": 1e-4, "train_images": None}


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (dict, '{"steps": 5, "flip": true, "learning_rate": 1e-4, "train_images": null}', JSON),
        (dict, "{'steps': 5, 'flip': True, 'learning_rate': 1e-4, 'train_images': None}", JSON),
        (dict | None, "None", None),
        (dict | None, None, None),
        (list | None, '["ncsn", "energy"]', ["ncsn", "energy"]),
        (float | None, "5", 5),
        (float | None, "2.5", 2.5),
        (float | None, "null", None),
        (float, "1e-4", 1e-4),
        (int, "3", 3),
        (int | None, 1000.0, 1000),
        (int | None, "1e3", 1000),
        (bool, "false", False),
        (bool, "True", True),
        (str | None, "None", None),
        (str | None, "a/folder", "a/folder"),
        (str | None, "5", "5"),
        (str, "None", "None"),
    ],
)
def test_a_parameter_that_came_as_text_is_read(kind, given, expected):
    found = typed(kind, name=given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        (dict, "steps=5", r"name must be settings, such as {\"steps\": 20000}; got 'steps=5'"),
        (dict, None, "name must be settings"),
        (dict | None, [5], "name must be settings, .* or None; got"),
        (float | None, "soon", "name must be a number or None; got 'soon'"),
        (float, True, "name must be a number; got True"),
        (int, 2.5, "name must be a whole number; got 2.5"),
        (int, "None", "name must be a whole number; got None"),
        (bool, "maybe", "name must be True or False; got 'maybe'"),
        (bool, 1, "name must be True or False; got 1"),
        (str | None, 5, "name must be a word or None; got 5"),
        (list | None, "ncsn", "name must be a list, .* or None; got 'ncsn'"),
    ],
)
def test_a_parameter_that_is_none_of_its_kind_is_refused_by_name(kind, given, says):
    with pytest.raises(ValueError, match=says):
        typed(kind, name=given)
