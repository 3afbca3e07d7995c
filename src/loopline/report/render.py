"""The page from the report: templates, and the filters that write numbers and foreign text.

    html = render(report, stamp)

Everything is escaped by the template engine; text that models or users wrote also loses what would not be seen or
would turn the reading direction. Not covered: reading the run (see `report.data`), writing the file (see
`report.page`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from loopline.base.files import to_json
from loopline.report import charts
from loopline.report.curves import loss_charts, panels, rl_charts
from loopline.report.evaluations import metrics_of, table
from loopline.report.picture import picture

TEMPLATES = Path(__file__).parent / "templates"
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Control characters, invisible ones, characters that reorder text, and halves of surrogate pairs."""


def visible(text: Any) -> Markup:
    """Foreign text, escaped, with characters that would not be seen spelled out.

    A break is allowed after "://", so that a long address wraps; nothing makes it a link.
    """
    shown = UNSEEN.sub(lambda match: f"\\u{ord(match.group()):04x}", str(text).replace("\r\n", "\n"))
    return Markup(str(escape(shown)).replace("://", ":<wbr>//"))


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{100 * value:+.1f}"
    return text.replace("-", "−") if float(text) else "0.0"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def decimal(value: float, digits: int = 3) -> str:
    """A number with a sign only below zero."""
    return f"{value:.{digits}f}".replace("-", "−")


def change(value: float) -> str:
    """A relative change as a percentage; a small one is not passed off as none."""
    if 0 < abs(value) < 0.0005:
        return "less than 0.1%"
    return f"{100 * value:+.1f}%".replace("-", "−")


def probability(value: float) -> str:
    """A p-value."""
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """Seconds as people read them."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return "–" if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes."""
    if value is None:
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def breakable(name: str) -> Markup:
    """A name that may break after its underscores."""
    return Markup(str(escape(name)).replace("_", "_<wbr>"))


def pretty(value: Any) -> Markup:
    """A JSON value, indented, as foreign text."""
    return visible(to_json(value, indent=2))


def environment() -> Environment:
    """The template engine: everything escaped, nothing undefined passes silently."""
    engine = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (visible, percent, points, signed, decimal, change, probability, duration, count, size, breakable, pretty)
    engine.filters.update({function.__name__: function for function in filters})
    engine.filters["short"] = lambda digest: "–" if digest is None else str(digest)[:12]
    engine.globals.update(
        line_chart=charts.line_chart,
        interval=charts.interval,
        forest=charts.forest,
        forest_axis=charts.forest_axis,
        forest_limit=charts.forest_limit,
        scatter=charts.scatter,
    )
    return engine


def render(report: Mapping[str, Any], stamp: str) -> str:
    """The whole page. `stamp` is what `report.fingerprint` gave when the report was read."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    kinds = {row["name"]: row["node_kind"] for row in report["stages"]}
    template = environment().get_template("page.html")
    return template.render(
        report=report,
        stamp=stamp,
        style=Markup(style),
        picture=picture(report),
        losses=panels(report["curves"], loss_charts(report["curves"])),
        rl=panels(report["curves"], rl_charts(report["curves"])),
        tables=tables([row for row in report["evaluations"] if kinds[row["stage"]] == "evaluate"]),
        harness_tables=tables([row for row in report["evaluations"] if kinds[row["stage"]] == "harness"]),
        bits=bits_table(report),
        pairs=pairs(report["comparisons"]),
    )


def tables(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One table of checkpoints by tasks per metric."""
    return [table(rows, metric) for metric in metrics_of(rows)]


def pairs(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Comparisons by pair, then by metric: {"a", "b", "question", "rows", "modes": [(metric, rows)]}."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in comparisons:
        grouped.setdefault((row["a"], row["b"]), []).append(row)
    return [
        {
            "a": a,
            "b": b,
            "question": rows[0]["question"],
            "rows": rows,
            "modes": [
                (metric, [row for row in rows if row["metric"] == metric])
                for metric in dict.fromkeys(row["metric"] for row in rows)
            ],
        }
        for (a, b), rows in grouped.items()
    ]


def bits_table(report: Mapping[str, Any]) -> dict[str, Any]:
    """Checkpoints by sources of held-out text."""
    rows = report["bits_per_byte"]
    sources = list(dict.fromkeys(row["source"] for row in rows))
    names = list(dict.fromkeys(row["checkpoint"] for row in rows))
    by_place = {(row["checkpoint"], row["source"]): row for row in rows}
    return {
        "columns": sources,
        "rows": [{"checkpoint": name, "cells": [by_place.get((name, source)) for source in sources]} for name in names],
    }
