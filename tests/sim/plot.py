"""A line plot as SVG text, logarithmic to the right, without any package."""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 360, 60, 50, 50, 20
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


@dataclass
class Line:
    """One curve; x above 0, y from 0."""

    name: str
    points: list[tuple[float, float]]


def plot(lines: list[Line], title: str) -> str:
    """The picture of these curves.

    Parameters:
        lines: at least one, each with at least one point.
    """
    xs = [math.log10(x) for line in lines for x, _ in line.points]
    low, high = math.floor(min(xs)), max(math.ceil(max(xs)), math.floor(min(xs)) + 1)
    step = _step(max(y for line in lines for _, y in line.points))
    top = step * 5

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - BOTTOM - TOP)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><text x="{LEFT}" y="16">{title}</text>',
    ]
    for number in range(6):
        _, y = place(10**low, number * step)
        out.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number * step:g}</text>')
    for power in range(low, high + 1):
        x, y = place(10**power, 0)
        out.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{10**power:,}</text>')
    for number, line in enumerate(lines):
        color = COLORS[number % len(COLORS)]
        placed = [place(x, y) for x, y in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        out.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        out.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in placed)
        out.append(f'<text x="{LEFT + 200 * number}" y="36" fill="{color}">{line.name}</text>')
    return "\n".join([*out, "</svg>", ""])


def _step(most: float) -> float:
    """A round fifth of a little more than the largest value."""
    step = 10.0 ** math.floor(math.log10(most / 5))
    while step * 5 < most:
        step *= 2
    return step
