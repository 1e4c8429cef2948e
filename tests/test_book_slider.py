"""Sliders through pictures."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from ncsn_core.book.slider import slider_html

FRAMES = [np.full((4, 6), value, np.uint8) for value in (0, 100, 200)]
LABELS = ["σ = 1", "σ < 1", "σ = 0"]


def made(**options):
    settings = {"name": "noise level", "alt": "A digit at", "enlarge": 10} | options
    return slider_html(FRAMES, LABELS, **settings)


def test_every_frame_is_there_and_one_is_shown():
    pictures = re.findall(r"<img [^>]*>", made(start=1))
    assert all(' width="60"' in picture for picture in pictures)
    assert [" hidden" in picture for picture in pictures] == [True, False, True]
    for picture, frame in zip(pictures, FRAMES, strict=True):
        data = base64.b64decode(re.search('base64,([^"]+)', picture)[1])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), frame)


def test_it_is_named_and_starts_at_the_last_frame():
    text = made()
    assert "<label>noise level: <output>σ = 0</output>" in text
    assert 'min="0" max="2" value="2" aria-valuetext="σ = 0"' in text
    assert 'alt="A digit at σ &lt; 1."' in text


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(ValueError, match="3 frames need as many labels, and have 2"):
        slider_html(FRAMES, LABELS[:2], name="a", alt="b")
    with pytest.raises(ValueError, match="0 frames"):
        slider_html([], [], name="a", alt="b")
    with pytest.raises(ValueError, match="uint8"):
        slider_html([np.zeros((2, 2))], ["x"], name="a", alt="b")
