"""Players: frames behind a slider."""

import base64
import io
import re
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ncsn_core.book import player

FRAMES = [np.full((4, 6), value, np.uint8) for value in (0, 100, 200)]
LABELS = ["σ = 1", "σ < 1", "σ = 0"]


def made(frames=FRAMES, **options):
    settings = {"name": "noise level", "alt": "A digit at", "enlarge": 10} | options
    return player.player_html(frames, LABELS, **settings)


def stored(text):
    for picture in re.findall('base64,([^"]+)', text):
        yield Image.open(io.BytesIO(base64.b64decode(picture)))


def test_every_frame_is_there_and_one_is_shown():
    text = made(start=1)
    pictures = re.findall(r"<img [^>]*>", text)
    assert all(' width="60" height="40"' in picture for picture in pictures)
    assert [" hidden" in picture for picture in pictures] == [True, False, True]
    for picture, frame in zip(stored(text), FRAMES, strict=True):
        np.testing.assert_array_equal(picture, frame)


def test_floats_are_the_same_frames():
    assert made([frame / 255 for frame in FRAMES]) == made()


def test_it_is_named_and_starts_at_the_last_frame():
    text = made()
    assert '<label>noise level: <output aria-live="off">σ = 0</output>' in text
    assert 'min="0" max="2" value="2" aria-valuetext="σ = 0"' in text
    assert 'alt="A digit at σ &lt; 1."' in text


def test_only_what_is_to_move_has_a_button_and_starts_unless_motion_is_unwanted():
    assert "<button" not in made()
    assert "onload" not in made()
    text = made(interval_ms=80, hold_ms=900)
    assert (
        text.count("<button") == text.count("onload") == text.count("prefers-reduced-motion") == 1
    )
    assert "input.max ? 900 : 80" in text


def test_drawn_frames_have_more_pixels_than_they_take():
    frames = player.drawn(lambda ax, i: ax.plot([0, i]), 3, height=2.0)
    text = made(frames)
    assert text.count(' width="520" height="200"') == 3
    first, *_, last = stored(text)
    assert first.size == (650, 250)
    assert first.tobytes() != last.tobytes()


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(ValueError, match="2 frames need as many labels, and have 3"):
        made(FRAMES[:2])
    with pytest.raises(ValueError, match=r"not float64 \[2, 2\]"):
        made([np.full((2, 2), 1.1)] * 3)


def test_nbval_compares_a_player_without_its_pictures():
    rule = ConfigParser()
    rule.read(Path(__file__).with_name("nbval.cfg"), encoding="utf-8")
    pattern, replacement = rule["picture"]["regex"], rule["picture"]["replace"]
    first, second = (re.sub(pattern, replacement, made([i + f for f in FRAMES])) for i in (0, 1))
    assert first == second
    assert first.count(f'src="{replacement}" width="60"') == 3
