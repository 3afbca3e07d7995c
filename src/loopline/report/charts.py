"""Charts as inline SVG: no script, no network, titles on hover, colours from the page's style.

    line_chart([{"label": "loss", "steps": [...], "values": [...]}], "Pretraining: loss", "nats per token")
    interval(0.61, 0.57, 0.65)                        # a score with its interval, on [0, 1]
    forest(0.21, 0.17, 0.25, limit=0.5)               # a difference with its interval, around 0

Every function returns markup in which all text is escaped. Not covered: interaction beyond hover titles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22
POINTS = 300
"""Points drawn per line at most; a longer curve is drawn as means of equal stretches."""
ZONES = 60
"""Hover zones per chart at most."""


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that lie in [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw), 10 * unit)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick or hover value, short."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000 or size < 0.001:
        return f"{value:.2g}"
    return (f"{value:.0f}" if size >= 1000 else f"{value:.4g}").replace("-", "−")


def thin(steps: Sequence[float], values: Sequence[float | None]) -> tuple[list[tuple[float, float]], int]:
    """(points, how many steps each is the mean of). Steps without a number are left out."""
    known = [(float(step), float(value)) for step, value in zip(steps, values, strict=True) if value is not None]
    size = max(1, math.ceil(len(known) / POINTS))
    parts = [known[start : start + size] for start in range(0, len(known), size)]
    return [(_mean([x for x, _ in part]), _mean([y for _, y in part])) for part in parts], size


def line_chart(lines: Sequence[dict[str, Any]], title: str, unit: str = "") -> Markup:
    """A panel of one or more curves over steps. Shares keep the axis [0, 1]; others take the range they need."""
    drawn = [(str(line["label"]), *thin(line["steps"], line["values"])) for line in lines]
    points = [point for _, some, _ in drawn for point in some]
    if not points:
        return Markup("")
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    share = unit.startswith("share")
    y_low, y_high = (0.0, 1.0) if share else _range([y for _, y in points])

    def x_at(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5)

    def y_at(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - y_low) / (y_high - y_low))

    parts = [Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)]
    for tick in ticks(y_low, y_high):
        y = round(y_at(tick), 1)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y)
            + Markup('<text x="{}" y="{}" class="end">{}</text>').format(LEFT - 6, y + 3.5, number(tick))
        )
    whole = [tick for tick in ticks(x_low, x_high, 5) if tick == int(tick)]
    for tick in whole or [x_low]:
        x = round(x_at(tick), 1)
        parts.append(Markup('<text x="{}" y="{}" class="mid">{}</text>').format(x, HEIGHT - 6, f"{tick:g}"))
    for index, (_, some, _) in enumerate(drawn):
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in some)
        if len(some) == 1:
            dot = Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="3"/>')
            parts.append(dot.format(index, x_at(some[0][0]), y_at(some[0][1])))
        else:
            parts.append(Markup('<polyline class="line s{}" points="{}"/>').format(index, path))
    parts += _zones(drawn, x_at)
    return Markup("").join([*parts, Markup("</svg>")])


def _zones(drawn: Sequence[tuple[str, list[tuple[float, float]], int]], x_at: Any) -> list[Markup]:
    """Invisible bars whose titles tell the numbers under the pointer."""
    longest = max((some for _, some, _ in drawn), key=len)
    stride = max(1, math.ceil(len(longest) / ZONES))
    parts = []
    for start in range(0, len(longest), stride):
        part = longest[start : start + stride]
        left, right = x_at(part[0][0]), x_at(part[-1][0])
        middle = part[len(part) // 2][0]
        texts = []
        for label, some, size in drawn:
            x, y = min(some, key=lambda point: abs(point[0] - middle))
            about = f" (mean of {size} steps)" if size > 1 else ""
            texts.append(f"step {x:.0f}, {label}: {number(y)}{about}")
        parts.append(
            Markup('<rect class="zone" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>').format(
                left - 1.5, TOP, max(right - left, 0) + 3, HEIGHT - TOP - BOTTOM, "\n".join(texts)
            )
        )
    return parts


def interval(value: float, low: float, high: float) -> Markup:
    """A small bar for a table cell: 95% interval and value on [0, 1]."""
    width = 72
    return Markup(
        '<svg class="mini" viewBox="0 0 {0} 8" aria-hidden="true"><line class="track" x1="0" x2="{0}" y1="4" y2="4"/>'
        '<line class="reach" x1="{1:.1f}" x2="{2:.1f}" y1="4" y2="4"/><circle cx="{3:.1f}" cy="4" r="3"/></svg>'
    ).format(width, low * width, high * width, 3 + value * (width - 6))


FOREST = 130


def forest(difference: float, low: float, high: float, limit: float, verdict: str | None, title: str) -> Markup:
    """One row of a forest plot on [-limit, limit]. `verdict` "a", "b" or None gives the colour."""

    def at(value: float) -> float:
        return FOREST / 2 * (1 + max(-1.0, min(1.0, value / limit)))

    kind = {"a": "up", "b": "down"}.get(verdict or "", "same")
    return Markup(
        '<svg class="forest {}" viewBox="0 0 {} 18" role="img" aria-label="{}"><title>{}</title>'
        '<line class="zero" x1="{}" x2="{}" y1="0" y2="18"/><line class="reach" x1="{:.1f}" x2="{:.1f}" y1="9" y2="9"/>'
        '<line class="reach" x1="{:.1f}" x2="{:.1f}" y1="5" y2="13"/>'
        '<line class="reach" x1="{:.1f}" x2="{:.1f}" y1="5" y2="13"/>'
        '<rect x="{:.1f}" y="5.5" width="7" height="7"/></svg>'
    ).format(
        kind, FOREST, title, title, FOREST / 2, FOREST / 2,
        at(low), at(high), at(low), at(low), at(high), at(high), at(difference) - 3.5,
    )  # fmt: skip


def forest_axis(limit: float) -> Markup:
    """The axis above the rows of a forest plot, in points of the score."""
    parts = [Markup('<svg class="forest" viewBox="0 0 {} 14" aria-hidden="true">').format(FOREST)]
    for tick in ticks(-limit, limit, 4):
        x = FOREST / 2 * (1 + tick / limit)
        label = f"{100 * tick:+g}".replace("-", "−") if tick else "0"
        parts.append(Markup('<text x="{:.1f}" y="11" class="mid">{}</text>').format(x, label))
    return Markup("").join([*parts, Markup("</svg>")])


def forest_limit(rows: Sequence[dict[str, Any]]) -> float:
    """Half the width of a scale on which every interval of `rows` fits, rounded up to a twentieth."""
    reach = max((abs(row[side]) for row in rows for side in ("low", "high")), default=0.0)
    return min(1.0, max(0.1, math.ceil(reach * 20 - 1e-9) / 20))


def scatter(points: Sequence[dict[str, Any]], kept: Sequence[str], winner: str) -> Markup:
    """Score against tokens per task of the harness candidates; the frontier is filled, the winner ringed."""
    x_low, x_high = _range([float(point["tokens"]) for point in points])
    y_low, y_high = _range([float(point["score"]) for point in points])
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, "Score of each harness against tokens per task"
        )
    ]
    for tick in ticks(y_low, y_high):
        y = round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - (tick - y_low) / (y_high - y_low)), 1)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y)
            + Markup('<text x="{}" y="{}" class="end">{}</text>').format(LEFT - 6, y + 3.5, number(tick))
        )
    for tick in ticks(x_low, x_high, 5):
        x = round(LEFT + (WIDTH - LEFT - RIGHT) * (tick - x_low) / (x_high - x_low), 1)
        parts.append(Markup('<text x="{}" y="{}" class="mid">{}</text>').format(x, HEIGHT - 6, number(tick)))
    for point in points:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (point["tokens"] - x_low) / (x_high - x_low)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (point["score"] - y_low) / (y_high - y_low))
        name = str(point["name"])
        title = f"{name}: score {number(point['score'])}, {number(point['tokens'])} tokens per task"
        if name == winner:
            parts.append(Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="8"/>').format(x, y))
        kind = "kept" if name in kept else "beaten"
        parts.append(
            Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
                kind, x, y, title
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little more than the values' own range, never empty; down to 0 where that is near."""
    low, high = min(values), max(values)
    if 0 <= low < 0.4 * high:
        low = 0.0
    if high == low:
        return low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    edge = 0.04 * (high - low)
    return low - edge if low else 0.0, high + edge


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
