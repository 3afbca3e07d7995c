"""Per-item outcomes of an evaluation, read from whatever program wrote them.

    outcomes = read_outcomes("runs/eval")          # .rows: one Outcome per item, sample and metric

Forms: a result of ours (a directory with items.jsonl, that file, a run directory, or RUN:NODE for one evaluation of a
run), what lm-eval writes under `--log_samples` (a samples_*.jsonl or the directory around them), an Inspect log (.eval
or .json, or a directory of logs), and plain JSONL of {"id", "score"} with, where there are several, "task_set",
"sample", "metric" and "cluster". A score of null means that it could not be graded. Not covered: scores that are no
single number (token counts, perplexities with weights); they are left out and named in `notes`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from loopline.base.errors import UserError
from loopline.base.files import to_json
from loopline.store.store import Store

FORMS = (
    "a result of `loopline eval` or a run directory, an lm-eval samples_*.jsonl or its directory, an Inspect .eval or "
    '.json log, or JSONL of {"id", "score"}'
)
ITEMS = "items.jsonl"
LM_EVAL_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d{2}-\d{2}T[^_]*)\.jsonl")
LM_EVAL_FIELDS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"} | {
    "doc_hash",
    "prompt_hash",
    "target_hash",
}
"""What is no metric in a line of an lm-eval log."""
INSPECT_WORDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Inspect's words for correct, partial, incorrect and no answer, as its own `value_to_float` reads them."""
TRUTH = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
ZIP_ZSTANDARD = 93

Json = Mapping[str, object]


@dataclass(frozen=True)
class Outcome:
    """One score of one sample on one item."""

    task_set: str
    id: str
    score: float | None
    """None: could not be graded."""
    metric: str = "score"
    """What was measured, where an item has several scores: a mode of ours, a metric and filter of lm-eval, a scorer."""
    cluster: str | None = None
    """Items that may depend on each other share one, such as questions about one passage."""
    content: str = ""
    """Digest of the item's text, where the log has it: equal ids of different texts are not one item."""


@dataclass(frozen=True)
class Outcomes:
    """One evaluation."""

    name: str
    form: str
    rows: tuple[Outcome, ...]
    notes: tuple[str, ...] = ()
    """What was left out, in words."""


def read_outcomes(argument: str) -> Outcomes:
    """Read the evaluation that a command-line argument names. Raises `UserError` naming file and line."""
    path, node = Path(argument), None
    if not path.exists() and ":" in argument:
        place, node = argument.rsplit(":", 1)
        path = Path(place)
    if not path.exists():
        raise UserError(f"There is no evaluation {argument}", f"name {FORMS}")
    found = _run(path, node) if node else _directory(path) if path.is_dir() else _file(path)
    if not found.rows:
        raise UserError(f"{argument} holds no outcome{_because(found.notes)}", f"name {FORMS}")
    return replace(found, name=argument)


def _because(notes: tuple[str, ...]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def _directory(path: Path) -> Outcomes:
    if (path / ITEMS).exists():
        return _rows_file(path / ITEMS)
    if (path / "store").is_dir():
        return _run(path, None)
    if samples := sorted(path.rglob("samples_*.jsonl")):
        return _lm_eval_directory(path, samples)
    logs = sorted(file for file in path.iterdir() if file.suffix in (".eval", ".json"))
    if not logs:
        raise UserError(f"{path} holds no evaluation", f"name {FORMS}")
    parts = [_inspect(file) for file in logs]
    return _joined(path, parts)


def _joined(path: Path, parts: list[Outcomes]) -> Outcomes:
    owner: dict[tuple[str, str], int] = {}
    for number, part in enumerate(parts):
        for key in {(row.task_set, row.metric) for row in part.rows}:
            if owner.setdefault(key, number) != number:
                raise UserError(
                    f"{path} holds two evaluations of {key[0]!r}: {parts[owner[key]].name} and {part.name}",
                    "name one of the files instead of the directory",
                )
    notes = tuple(note for part in parts for note in part.notes)
    return Outcomes(str(path), parts[0].form, tuple(row for part in parts for row in part.rows), notes)


def _run(path: Path, node: str | None) -> Outcomes:
    """The evaluation of a run directory, or of its node `node`."""
    newest = {item.stage: item for item in Store(path).artifacts() if (item / ITEMS).exists()}
    if node is None and len(newest) == 1:
        (node,) = newest
    if node not in newest:
        what = f"no evaluation {node!r}" if node else f"{len(newest) or 'no'} evaluations"
        known = ", ".join(f"{path}:{name}" for name in newest) or "none yet: run one with `loopline eval`"
        raise UserError(f"The run {path} has {what}", f"name one: {known}")
    return _rows_file(newest[node] / ITEMS)


def _file(path: Path) -> Outcomes:
    if path.suffix in (".eval", ".json"):
        return _inspect(path)
    return _lm_eval(path) if LM_EVAL_NAME.fullmatch(path.name) else _rows_file(path)


def _lines(path: Path) -> Iterator[tuple[str, Json]]:
    """("FILE, line N", object) for every line of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not JSON ({error.msg})", "write one JSON object per line") from error
            if not isinstance(row, dict):
                raise UserError(f"{where}: not a JSON object", f"name {FORMS}")
            yield where, row


def _number(value: object) -> float | None:
    """A score as a number; None when it is none (then it is no single score)."""
    if isinstance(value, str):
        value = TRUTH.get(value.lower(), value)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _rows_file(path: Path) -> Outcomes:
    """Rows of ours ({"task", "task_set", "score", "mode"}) or anyone's ({"id", "score"}); each part is a set."""
    rows: list[Outcome] = []
    ours = False
    for where, row in _lines(path):
        if not rows and "doc_id" in row:
            return _lm_eval(path)
        ours = "task_set" in row and "task" in row
        key = "task" if ours else "id"
        if key not in row or "score" not in row:
            raise UserError(f"{where}: no {key!r} or no 'score'", f"name {FORMS}")
        score = None if row["score"] is None else _number(row["score"])
        if score is None and row["score"] is not None:
            raise UserError(f"{where}: the score {row['score']!r} is no number", "write a number, or null if ungraded")
        metric = str(row.get("mode") or row.get("metric") or "score")
        cluster = row.get("cluster")
        name = str(row.get("task_set", "items"))
        if row.get("part", "heldout") != "heldout":
            name = f"{name} [{row['part']}]"
        rows.append(Outcome(name, str(row[key]), score, metric, None if cluster is None else str(cluster)))
    return Outcomes(str(path), "loopline" if ours else "jsonl", tuple(rows))


def _lm_eval_directory(path: Path, files: list[Path]) -> Outcomes:
    """The newest log of every task below a directory that holds the logs of one model."""
    places = sorted({file.parent for file in files})
    if len(places) > 1:
        raise UserError(f"{path} holds logs of {len(places)} models", f"name one: {', '.join(map(str, places))}")
    newest: dict[str, Path] = {}
    for file in files:
        match = LM_EVAL_NAME.fullmatch(file.name)
        newest[match["task"] if match else file.stem.removeprefix("samples_")] = file
    left = len(files) - len(newest)
    notes = (f"{left} older logs in {path} were left aside",) if left else ()
    joined = _joined(path, [_lm_eval(file) for file in newest.values()])
    return replace(joined, notes=notes + joined.notes)


def _lm_eval(path: Path) -> Outcomes:
    match = LM_EVAL_NAME.fullmatch(path.name)
    task = match["task"] if match else path.stem.removeprefix("samples_")
    scores: dict[str, list[tuple[Json, object]]] = {}
    for where, row in _lines(path):
        if "doc_id" not in row:
            raise UserError(f"{where}: no 'doc_id', which every line of an lm-eval log has", f"name {FORMS}")
        # Logs before 0.4.9 do not list their metrics.
        listed = row.get("metrics")
        names = [str(name) for name in listed] if isinstance(listed, list) else sorted(row.keys() - LM_EVAL_FIELDS)
        chosen = str(row.get("filter", "none"))
        for name in names:
            metric = name if chosen == "none" else f"{name},{chosen}"
            scores.setdefault(metric, []).append((row, row.get(name)))
    rows: list[Outcome] = []
    notes = []
    for metric, found in scores.items():
        values = [_number(value) for _, value in found]
        # `bypass` is lm-eval's placeholder for "computed no metric".
        if metric.startswith("bypass") or any(value is None for value in values):
            notes.append(f"{task}: {metric} is no number per item and was left out")
            continue
        rows += [
            Outcome(task, str(row["doc_id"]), value, metric, content=str(row.get("doc_hash", "")))
            for (row, _), value in zip(found, values, strict=True)
        ]
    return Outcomes(str(path), "lm-eval", tuple(rows), tuple(notes))


def _inspect(path: Path) -> Outcomes:
    """One Inspect log."""
    header, samples = _inspect_zip(path) if path.suffix == ".eval" else _inspect_json(path)
    spec = header.get("eval")
    if not isinstance(spec, dict) or "task" not in spec:
        raise UserError(f"{path} is not an Inspect log: it has no 'eval' with a 'task'", f"name {FORMS}")
    task = str(spec["task"])
    notes = []
    if header.get("status", "success") != "success":
        notes.append(f"{path} ended with status {header.get('status')}; the {len(samples)} samples it has were read")
    values = [dict(_inspect_scores(sample)) for sample in samples]
    metrics = list(dict.fromkeys(metric for found in values for metric in found))
    rows: list[Outcome] = []
    for metric in metrics:
        known = [found.get(metric) for found in values]
        if any(value is not None and _inspect_number(value) is None for value in known):
            notes.append(f"{task}: {metric} is no number per item and was left out")
            continue
        for sample, value in zip(samples, known, strict=True):
            text = hashlib.sha256(to_json([sample.get("input"), sample.get("target")]).encode()).hexdigest()
            score = None if value is None else _inspect_number(value)
            rows.append(Outcome(task, str(sample["id"]), score, metric, content=text))
    return Outcomes(str(path), "inspect", tuple(rows), tuple(notes))


def _inspect_number(value: object) -> float | None:
    return INSPECT_WORDS[value] if isinstance(value, str) and value in INSPECT_WORDS else _number(value)


def _inspect_scores(sample: Json) -> Iterator[tuple[str, object]]:
    """(metric, value) of a sample: one per scorer, or per key where a scorer gives several."""
    scores = sample.get("scores")
    for scorer, score in (scores if isinstance(scores, dict) else {}).items():
        value = score.get("value") if isinstance(score, dict) else score
        if isinstance(value, dict):
            yield from ((f"{scorer}/{key}", part) for key, part in value.items())
        else:
            # NaN is Inspect's word for a sample that was not scored.
            yield scorer, None if isinstance(value, float) and math.isnan(value) else value


def _inspect_json(path: Path) -> tuple[Json, list[Json]]:
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})", f"name {FORMS}") from error
    if not isinstance(log, dict):
        raise UserError(f"{path} is not an Inspect log", f"name {FORMS}")
    return log, log.get("samples") or []


def _inspect_zip(path: Path) -> tuple[Json, list[Json]]:
    header: Json
    samples: list[Json]
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "header.json" in names:
                header = _member(archive, "header.json")
            else:
                # A log whose run was cut short has only what it began with.
                header = {"eval": _member(archive, "_journal/start.json")["eval"], "status": "started"}
            samples = [_member(archive, name) for name in sorted(names) if re.fullmatch(r"samples/.+\.json", name)]
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(f"{path} is not an Inspect log ({error})", f"name {FORMS}") from error
    return header, samples


def _member(archive: zipfile.ZipFile, name: str) -> dict[str, object]:
    info = archive.getinfo(name)
    if info.compress_type != ZIP_ZSTANDARD:
        return dict(json.loads(archive.read(name)))
    # The standard library reads this compression from Python 3.14 on.
    from pyarrow import Codec

    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    # The header in front of the data: 30 bytes, of which the last four are the lengths of the name and the extras.
    lengths = struct.unpack("<2H", file.read(30)[26:])
    file.seek(info.header_offset + 30 + sum(lengths))
    content = Codec("zstd").decompress(file.read(info.compress_size), info.file_size, asbytes=True)
    return dict(json.loads(content))
