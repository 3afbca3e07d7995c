"""Everything the report says, as one JSON value: `loopline report --json` prints it, the page shows it.

    report = build_report(Path("runs/laptop"))
    report["comparisons"], report["release"], report["loops"]

Read from the artifacts of the stages that are done; what is not there yet is empty or None, never guessed. Not covered:
the page (see `report.page`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from loopline.base.stage import AREAS
from loopline.report.comparisons import comparisons
from loopline.report.curves import curves
from loopline.report.decisions import loops, mixture, release, selections
from loopline.report.evaluations import bits_per_byte, evaluations
from loopline.report.harness import harness
from loopline.report.headlines import headlines, sentence
from loopline.report.run import Run
from loopline.report.samples import answers, rollouts


def build_report(run_dir: Path) -> dict[str, Any]:
    """The report of a run, finished or not.

    Keys: run, rooms, stages, headlines, sentence, evaluations, bits_per_byte, comparisons, release, loops, curves,
    sources, corpus, mixture, funnel, traffic_funnel, selections, plan, audit, rollouts, answers, harness,
    environment, commands.
    Raises `UserError` when there is no run.
    """
    run = Run.load(run_dir)
    measured = evaluations(run)
    report: dict[str, Any] = {
        "schema": 1,
        "run": overview(run),
        "rooms": [
            {"room": number, "title": title, "stages": [row.name for row in run.rows if row.area == number]}
            for number, title in AREAS.items()
        ],
        "stages": stages(run),
        "evaluations": measured,
        "bits_per_byte": bits_per_byte(measured),
        "comparisons": comparisons(run),
        "release": release(run),
        "loops": loops(run),
        "curves": curves(run),
        "sources": run.json(run.last("raw"), "sources.json") or {},
        "corpus": run.json(run.last("data"), "manifest.json"),
        "mixture": mixture(run),
        "funnel": run.json(run.last("data"), "funnel.json") or [],
        "traffic_funnel": run.json(run.last("traffic_data"), "funnel.json") or [],
        "selections": selections(run),
        "plan": run.json(run.last("plan"), "plan.json"),
        "audit": audit(run),
        "rollouts": rollouts(run),
        "answers": answers(run),
        "harness": harness(run),
        "environment": environment(run),
        "commands": commands(run),
    }
    return {**report, "headlines": headlines(report), "sentence": sentence(report)}


def overview(run: Run) -> dict[str, Any]:
    """{"name", "seed", "state", "seconds", "done", "total"}; seconds add up over the finished stages."""
    states = [row.state for row in run.rows]
    order = ("failed", "interrupted", "running", "pending")
    state = next((name for name in order if name in states), "done")
    if state == "pending" and run.running:
        state = "running"
    elif state == "pending" and "done" in states:
        state = "partly done"
    return {
        "name": run.name,
        "seed": run.seed,
        "state": state,
        "seconds": round(math.fsum(row.seconds for row in run.rows if row.seconds is not None), 2),
        "done": states.count("done"),
        "total": len(states),
    }


def stages(run: Run) -> list[dict[str, Any]]:
    """Every stage: state, time, content, what it was made from; the manifest's part only where it is done."""
    rows = []
    for status in run.rows:
        artifact = run.artifacts.get(status.name)
        meta = {} if artifact is None else artifact.meta
        rows.append(
            {
                "name": status.name,
                "room": status.area,
                "title": status.stage,
                "node_kind": status.kind,
                "headline": status.headline,
                "state": status.state,
                "seconds": status.seconds,
                "digest": status.digest,
                "identity": status.identity,
                "path": status.path,
                "why": status.why,
                "error": status.error,
                "kind": meta.get("kind"),
                "seed": meta.get("seed"),
                "version": meta.get("version"),
                "inputs": meta.get("inputs", {}),
                "metrics": meta.get("metrics", {}),
                "config": meta.get("config"),
            }
        )
    return rows


def audit(run: Run) -> dict[str, Any]:
    """Grader -> {"passed", "required", "probes"}; `required` ones had to pass before anything trained on them."""
    node = run.last("graders")
    report = run.json(node, "audit.json") or {}
    required = run.artifacts[node].meta.get("config", {}).get("required", []) if report else []
    return {name: {**entry, "required": name in required} for name, entry in report.items()}


def environment(run: Run) -> list[dict[str, Any]]:
    """The environments that the finished stages ran in: {"versions", "stages"}; one entry when all ran alike."""
    found: list[dict[str, Any]] = []
    for row in run.rows:
        artifact = run.artifacts.get(row.name)
        versions = artifact.meta.get("environment") if artifact else None
        if not versions:
            continue
        entry = next((entry for entry in found if entry["versions"] == versions), None)
        if entry is None:
            found.append({"versions": versions, "stages": [row.name]})
        else:
            entry["stages"].append(row.name)
    return found


def commands(run: Run) -> list[dict[str, str]]:
    """How to make this run again and look into it: {"command", "what"}."""
    place = run.path.resolve()
    here = Path.cwd().resolve()
    # From where the report is written; a place outside is named by its last part, since a page may travel.
    directory = f"--dir {place.relative_to(here) if place.is_relative_to(here) else place.name}"
    rows = [
        (f"loopline run {run.name} --seed {run.seed} {directory}", "make it, or go on where it stopped"),
        (f"loopline status {directory}", "the state of every stage"),
        (f"loopline why {run.rows[-1].name} {directory}", "why a stage last ran"),
        (f"loopline verify {directory}", "check every artifact against its digest"),
        (f"loopline report {directory} --json", "the numbers of this page"),
    ]
    if run.last("release"):
        rows += [
            (f"loopline chat {directory}", "talk to the released model"),
            (f"loopline serve {directory}", "serve it over the OpenAI API and record its traffic"),
        ]
    return [{"command": command, "what": what} for command, what in rows]
