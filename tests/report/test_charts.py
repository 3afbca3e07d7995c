import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.report.charts import (
    FOREST,
    HEIGHT,
    POINTS,
    WIDTH,
    forest,
    forest_limit,
    interval,
    line_chart,
    scatter,
    thin,
    ticks,
)

finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(low=finite, width=st.floats(1e-6, 1e6))
def test_ticks_are_few_and_lie_in_the_range(low, width):
    high = low + width
    found = ticks(low, high)
    assert len(found) <= 6
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert found == sorted(found)


@given(values=st.lists(st.one_of(st.none(), finite), min_size=1, max_size=900))
def test_thinning_keeps_the_mean_and_bounds_the_points(values):
    points, size = thin(list(range(len(values))), values)
    known = [value for value in values if value is not None]
    assert len(points) <= POINTS
    assert size == max(1, math.ceil(len(known) / POINTS))
    if known and len(known) % size == 0:
        mean = sum(y for _, y in points) / len(points)
        assert mean == pytest.approx(sum(known) / len(known), abs=1e-6)
    if size == 1:
        assert [y for _, y in points] == known


@given(values=st.lists(finite, min_size=2, max_size=40))
def test_a_curve_stays_inside_its_panel(values):
    svg = line_chart([{"label": "loss", "steps": list(range(len(values))), "values": values}], "t")
    for x, y in re.findall(r"([-\d.]+),([-\d.]+)", re.search(r'points="([^"]*)"', svg).group(1)):
        assert -0.1 <= float(x) <= WIDTH + 0.1 and -0.1 <= float(y) <= HEIGHT + 0.1


def test_higher_values_are_drawn_higher():
    svg = line_chart([{"label": "a", "steps": [0, 1, 2], "values": [1.0, 3.0, 2.0]}], "t")
    heights = [float(y) for _, y in re.findall(r"([\d.]+),([\d.]+)", re.search(r'points="([^"]*)"', svg).group(1))]
    assert heights[1] < heights[2] < heights[0]


def test_single_points_missing_numbers_and_nothing_at_all():
    assert "<circle" in line_chart([{"label": "a", "steps": [4], "values": [1.0]}], "t")
    assert line_chart([{"label": "a", "steps": [4, 5], "values": [None, None]}], "t") == ""
    svg = line_chart([{"label": "a", "steps": [0, 1, 2], "values": [1.0, None, 2.0]}], "t")
    assert len(re.search(r'points="([^"]*)"', svg).group(1).split()) == 2


def test_hover_tells_step_and_value_of_every_line():
    lines = [{"label": f"l{n}", "steps": [0, 1], "values": [float(n), n + 0.5]} for n in range(2)]
    svg = line_chart(lines, "t")
    assert "step 1, l0: 0.5\nstep 1, l1: 1.5" in svg


def test_labels_and_titles_are_escaped():
    evil = '"><script>x</script>'
    drawn = [
        line_chart([{"label": evil, "steps": [0, 1], "values": [1.0, 2.0]}], evil, evil),
        forest(0.1, 0.0, 0.2, 0.5, "a", evil),
        scatter([{"name": evil, "score": 0.5, "tokens": 3.0}], [], evil),
    ]
    for svg in drawn:
        assert "<script" not in svg and "&lt;script&gt;" in svg


@given(low=st.floats(-1, 1), high=st.floats(-1, 1), share=st.floats(0, 1))
def test_a_forest_row_keeps_order_and_sides(low, high, share):
    low, high = sorted((low, high))
    middle = low + share * (high - low)
    row = {"low": low, "high": high}
    limit = forest_limit([row])
    assert limit >= max(abs(low), abs(high)) - 1e-9 or limit == 1.0
    svg = forest(middle, low, high, limit, None, "t")
    left, right = re.search(r'class="reach" x1="([-\d.]+)" x2="([-\d.]+)" y1="9"', svg).groups()
    square = float(re.search(r'rect x="([-\d.]+)"', svg).group(1)) + 3.5
    assert -0.1 <= float(left) <= square + 0.2 and square - 0.2 <= float(right) <= FOREST + 0.1
    assert (float(left) > FOREST / 2) == (low / limit * FOREST / 2 > 0.05) or abs(low / limit) < 0.01


def test_colours_follow_the_verdict_and_not_the_sign():
    assert 'class="forest same"' in forest(0.3, 0.1, 0.5, 0.5, None, "t")
    assert 'class="forest up"' in forest(0.3, 0.1, 0.5, 0.5, "a", "t")
    assert 'class="forest down"' in forest(-0.3, -0.5, -0.1, 0.5, "b", "t")


def test_an_interval_ends_where_its_numbers_say():
    svg = interval(0.5, 0.25, 0.75)
    assert 'x1="18.0" x2="54.0"' in svg and 'cx="36.0"' in svg
