"""What a candidate's files say: parts stay apart, refusals are counted by tag, costs from the files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl, write_json, write_jsonl
from loopline.model.checkpoint import load_model
from loopline.release.evidence import checkpoint_size, metrics_of, places_of, read_items, scores, shared_mode
from loopline.release.files import copy_checkpoint
from tests.release.synthetic import graded, items, write_checkpoint, write_evaluation


def test_only_the_asked_part_is_read(tmp_path):
    path = write_evaluation(tmp_path / "e", {"sums": 1.0}, heldout={"sums": 0.0}, n=10)
    assert all(item.score == 1 for item in read_items(path, "sampled", "dev", {}))
    assert all(item.score == 0 for item in read_items(path, "sampled", "heldout", {}))


def test_parts_and_tags_come_from_the_tasks_where_rows_do_not_say(tmp_path):
    path = write_evaluation(tmp_path / "e", {"manners": 1.0}, n=6)
    tasks = tmp_path / "tasks"
    rows = read_jsonl(path / "items.jsonl")
    for part in ("dev", "heldout"):
        write_jsonl(tasks / f"{part}.jsonl", [{"id": r["task"], "tags": r["tags"]} for r in rows if r["part"] == part])
    stripped = [{key: value for key, value in row.items() if key not in ("part", "tags")} for row in rows]
    full = read_items(path, "sampled", "dev", {})
    write_jsonl(path / "items.jsonl", stripped)
    assert read_items(path, "sampled", "dev", places_of(tasks)) == full
    with pytest.raises(UserError, match="row 1: the task 'manners-dev-0' belongs to no part"):
        read_items(path, "sampled", "dev", {})


def test_an_evaluation_without_the_part_is_refused(tmp_path):
    write_jsonl(tmp_path / "items.jsonl", items({"sums": 1.0}, n=3, part="heldout"))
    with pytest.raises(UserError, match="no sampled answers to tasks of the dev part"):
        read_items(tmp_path, "sampled", "dev", {})


def test_samples_of_a_task_are_one_observation(tmp_path):
    rows = graded({"sums": 1.0}, n=2)
    doubled = (*rows, *graded({"sums": 0.0}, n=2))
    assert list(scores(doubled, "sums").values()) == [0.5, 0.5] and metrics_of(doubled)["sums"].n == 2


def test_refusing_a_request_to_answer_is_not_the_same_as_helping_badly():
    rows = items({"manners": 1.0}, n=10)
    rows[1] |= {"score": 0.0, "flags": ["over_refusal"]}
    rows[3] |= {"score": 0.0, "output": "I cannot help with that."}
    rows[5] |= {"score": 0.0}
    rows[0] |= {"score": 0.0}
    from loopline.release.evidence import item_of

    metrics = metrics_of([item_of(row, tuple(row["tags"])) for row in rows])
    assert metrics["refusal"].value == pytest.approx(4 / 5)
    assert metrics["over_refusal"].value == pytest.approx(2 / 5)


def test_modes_are_shared_or_refused(tmp_path):
    for name, modes in (("both", ("sampled", "greedy")), ("greedy", ("greedy",)), ("sampled", ("sampled",))):
        write_jsonl(tmp_path / name / "items.jsonl", [row for m in modes for row in items({"a": 1.0}, n=2, mode=m)])
    assert shared_mode([tmp_path / "both"], None) == "sampled"
    assert shared_mode([tmp_path / "both", tmp_path / "greedy"], None) == "greedy"
    for wanted in (None, "sampled"):
        with pytest.raises(UserError, match="evaluate all candidates in the same"):
            shared_mode([tmp_path / "sampled", tmp_path / "greedy"], wanted)


def sharded(source, target):
    """The same checkpoint in two files and an index."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix == ".json":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in sorted(set(places.values())):
        save_file({name: tensors[name] for name in names if places[name] == file}, target / file)
    write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return target


def test_cost_is_counted_from_the_files_sharded_or_not(tmp_path):
    path = write_checkpoint(tmp_path / "whole")
    size = checkpoint_size(path)
    assert size.parameters == sum(value.numel() for value in load_model(path).parameters())
    assert size.bytes == (path / "model.safetensors").stat().st_size and size.flops == 2 * size.parameters
    assert checkpoint_size(sharded(path, tmp_path / "shards")).parameters == size.parameters
    strange = json.loads((path / "config.json").read_text()) | {"model_type": "unheard-of"}
    write_json(path / "config.json", strange)
    assert checkpoint_size(path).parameters == size.parameters


def test_every_checkpoint_file_is_copied_and_nothing_else(tmp_path):
    source = sharded(write_checkpoint(tmp_path / "whole"), tmp_path / "shards")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "LICENSE").write_text("MIT License\n\nPermission is hereby granted")
    (source / "rollouts.jsonl").write_text("{}")
    (source / "log").mkdir()
    copy_checkpoint(source, tmp_path / "copy")
    copied = {file.name for file in (tmp_path / "copy").iterdir()}
    assert copied == {file.name for file in source.iterdir()} - {"rollouts.jsonl", "log"}
    left, right = load_model(source).state_dict(), load_model(tmp_path / "copy").state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)
    (source / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="has no model-00001-of-00002.safetensors"):
        copy_checkpoint(source, tmp_path / "again")
