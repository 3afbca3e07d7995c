from loopline.report.curves import Chart, loss_charts, panels, rl_charts
from tests.report.synthetic import STEPS


def test_a_curve_has_one_number_per_step_and_none_where_it_was_not_finite(full_report):
    curve = full_report["curves"]["grpo"]
    assert curve["finished"] and curve["steps"] == list(range(STEPS))
    assert curve["series"]["loss"][2:5] == [4.5, None, 4.0]
    assert curve["series"]["reward"] == [step / STEPS for step in range(STEPS)]


def test_stages_without_a_curve_are_left_out(full_report):
    assert "data" not in full_report["curves"] and "quantize" in full_report["curves"]


def test_every_stage_that_trains_has_its_panels(full_report):
    curves = full_report["curves"]
    titles = [panel["title"] for panel in panels(curves, rl_charts(curves))]
    assert titles == [f"grpo: {name}" for name in ("Reward", "Groups", "Entropy", "Answer length")]
    shown = [panel["title"] for panel in panels(curves, loss_charts(curves))]
    assert shown == [f"{stage}: loss" for stage in curves]


def test_a_chart_shows_what_there_is_so_far():
    found = {"a": {"finished": False, "steps": [0], "series": {"loss": [1.0]}}}
    chart = Chart("t", [("a", "loss", "loss"), ("b", "loss", "other")])
    assert panels(found, [chart])[0]["lines"] == [{"label": "loss (so far)", "steps": [0], "values": [1.0]}]
    assert panels({}, [chart]) == []
