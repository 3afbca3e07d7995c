"""The line as a picture: its nine areas in order, their stages, and the two loops that lead back.

    picture(report)["rooms"], picture(report)["loops"]

The template lays the boxes out as a grid that becomes a column on a narrow screen. Not covered: arrows between single
stages; what a stage was made from is on its card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LOOPS = (
    {"name": "benchmarks", "kind": "gate_benchmarks", "from": 6, "to": 3, "title": "Benchmark loop"},
    {"name": "traffic", "kind": "gate", "from": 9, "to": 2, "title": "Traffic loop"},
)
ORDER = ("failed", "interrupted", "running", "pending")


def picture(report: Mapping[str, Any]) -> dict[str, Any]:
    """{"rooms": [{"room", "title", "state", "seconds", "groups"}], "loops": [...]} for the template.

    A group is {"title", "stages"}; evaluations are grouped, without their common prefix.
    """
    by_name = {row["name"]: row for row in report["stages"]}
    rooms = []
    for room in report["rooms"]:
        members = [by_name[name] for name in room["stages"]]
        seconds = [row["seconds"] for row in members if row["seconds"] is not None]
        rooms.append(
            {
                "room": room["room"],
                "title": room["title"],
                "state": _state(members),
                "seconds": sum(seconds) if seconds else None,
                "groups": _groups(members),
            }
        )
    decisions = {loop["name"]: loop for loop in report["loops"]}
    loops = []
    for loop in LOOPS:
        decision = decisions.get(loop["name"])
        stage = next((row for row in report["stages"] if row["node_kind"] == loop["kind"]), None)
        state = "not in this line" if stage is None else stage["state"]
        loops.append({**loop, "decision": decision["decision"] if decision else None, "state": state})
    return {"rooms": rooms, "loops": loops}


def _state(members: Sequence[Mapping[str, Any]]) -> str:
    states = {row["state"] for row in members}
    if states == {"pending"} or not states:
        return "pending"
    return next((name for name in ORDER if name in states), "done")


def _groups(members: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    plain = [{**row, "label": row["name"]} for row in members if row["node_kind"] != "evaluate"]
    evaluations = [
        {**row, "label": row["name"].removeprefix("evaluate_")} for row in members if row["node_kind"] == "evaluate"
    ]
    groups = [{"title": "", "stages": plain}, {"title": "evaluate", "stages": evaluations}]
    return [group for group in groups if group["stages"]]
