"""A claim's numbers as one small picture: the accepted band, the measured value, its seed band."""

import html
import math
from collections.abc import Callable

from ncsn_book.scorecard import Row

WIDTH, HEIGHT, MARGIN = 150, 22, 6


def band_plot(row: Row) -> str:
    """Return an inline SVG: the band as a bar, the value as a dot, the seed band as a line.

    Its colors are classes of the style sheet, so that it follows light and dark.  The axis is
    logarithmic where the numbers are positive and span a factor of thirty.  Empty for a value that
    is not finite, or none.
    """
    verdict, accept = row.verdict, row.measurement.accept
    if verdict is None or not math.isfinite(verdict.value):
        return ""
    low, high = verdict.spread or (verdict.value, verdict.value)
    known = [
        number
        for number in (accept.min, accept.max, verdict.value, low, high)
        if number is not None and math.isfinite(number)
    ]
    place = _axis(min(known), max(known))
    left = MARGIN / 2 if accept.min is None else place(accept.min)
    right = WIDTH - MARGIN / 2 if accept.max is None else place(accept.max)
    label = html.escape(f"measured {verdict.measured()}, accepted {accept}")
    middle = HEIGHT / 2
    return (
        f'<svg class="ncsn-band {row.status}" role="img" aria-label="{label}" '
        f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<rect x="{left:.1f}" y="4" width="{max(right - left, 2):.1f}" height="{HEIGHT - 8}"/>'
        f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{middle:g}" y2="{middle:g}"/>'
        f'<circle cx="{place(verdict.value):.1f}" cy="{middle:g}" r="4"/></svg>'
    )


def _axis(low: float, high: float) -> Callable[[float], float]:
    """Map numbers from low to high onto the picture, with room at both ends."""
    logarithmic = low > 0 and high / low > 30

    def scale(number: float) -> float:
        return math.log(number) if logarithmic else number

    first, last = scale(low), scale(high)
    room = 0.15 * (last - first) or abs(last) or 1.0
    first, last = first - room, last + room
    inner = WIDTH - 2 * MARGIN
    return lambda number: MARGIN + inner * (scale(number) - first) / (last - first)
