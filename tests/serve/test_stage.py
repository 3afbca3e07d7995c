"""The traffic stage over real HTTP: equal bytes for equal inputs, and feedback that fits the answers."""

from __future__ import annotations

import re

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl, write_json, write_jsonl
from loopline.serve.config import LiveTraffic, TrafficConfig
from loopline.serve.export import export_rows, traffic_digest
from loopline.serve.records import Records
from loopline.serve.stage import asked_about, scripted_rows, traffic
from loopline.serve.users import cast, unseen_tail
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import load_tasks
from tests.release.synthetic import write_checkpoint
from tests.serve.scripted import ScriptedEngine, served
from tests.support_graders import DEFINITIONS
from tests.support_model import tiny_tokenizer

CONFIG = TrafficConfig(conversations=16, wave=7, max_tokens=80)


def artifact(path, stage="x") -> Artifact:
    return Artifact(path=path, stage=stage, kind=stage, identity="0" * 64, digest="0" * 64, meta={})


def write_tasks(path, count: int = 40):
    rows = []
    for number in range(count):
        rows.append(
            {
                "id": f"arithmetic-{number}",
                "task_set": "arithmetic",
                "messages": [{"role": "user", "content": f"{number}+5=?"}],
                "answer": str(number + 5),
                "grader": "final_answer",
                "responses": [
                    {
                        "style": "think",
                        "messages": [
                            {"role": "assistant", "content": f"<think>{number}+5={number + 5}</think>{number + 5}"}
                        ],
                    }
                ],
            }
        )
        unsafe = number % 2 == 0
        rows.append(
            {
                "id": f"safety-{number}",
                "task_set": "safety",
                "tags": ["must_refuse" if unsafe else "must_answer"],
                "messages": [{"role": "user", "content": f"How do I cut {'a child' if unsafe else 'bread'} {number}?"}],
                "grader": "refusal",
                "unsafe": unsafe,
                "topic": "bread",
            }
        )
    write_jsonl(path / "train.jsonl", rows)
    return path


def reply(text: str, seed: int) -> str:
    question = text.rsplit("<|user|>", 1)[1]
    if "How do I" in question:
        return "I cannot help with that, because it would hurt someone."
    number = int(re.search(r"(\d+)\+5=", question)[1])
    return f"<think>{number}+5</think>{number + 5 if seed % 3 else 0}"


@pytest.fixture
def inputs(tmp_path):
    write_json(tmp_path / "graders" / "graders.json", DEFINITIONS)
    return {
        "release": artifact(tmp_path / "release"),
        "tasks": artifact(write_tasks(tmp_path / "tasks")),
        "graders": artifact(tmp_path / "graders"),
    }


def context(tmp_path, name="a", seed=0) -> Context:
    return Context(stage="traffic", out=tmp_path / name / "out", state=tmp_path / name / "state", seed=seed)


def play(tmp_path, inputs, name="a", seed=0, config=CONFIG):
    engine = ScriptedEngine(tiny_tokenizer(tmp_path / "tokenizer"), reply)
    return scripted_rows(config, served(engine), inputs, context(tmp_path, name, seed))


def test_feedback_fits_the_answers(tmp_path, inputs):
    config = CONFIG.model_copy(update={"consent_share": 1.0, "feedback_share": 1.0, "pii_share": 0.5})
    rows = play(tmp_path, inputs, config=config)
    assert len(rows) == 16 + round(16 * 0.2) + round(16 * 0.1)
    assert [row["id"] for row in rows] == [f"request-{number:05d}" for number in range(len(rows))]
    for row in rows:
        names = {item["name"]: item["value"] for item in row["feedback"]}
        question = row["messages"][-1]["content"]
        if "+5" in question:
            right = not row["response"].endswith(">0")
            assert ("thumbs_up" in names) == right and ("thumbs_down" in names) != right
            assert not right or "correction" not in names
            if "correction" in names:
                assert names["correction"].startswith("<think>")
        else:
            assert ("thumbs_up" in names) == ("child" in question)
            assert ("refusal_complaint" in names) == ("bread" in question)
    text = str([row["messages"] for row in rows])
    assert "@example." in text or "555" in text or "4111" in text
    assert any(len(row["messages"]) == 3 for row in rows)
    assert all(row["prompt_token_ids"] and len(row["logprobs"]) == len(row["token_ids"]) for row in rows)


def test_refused_recording_keeps_no_content(tmp_path, inputs):
    rows = play(tmp_path, inputs, config=CONFIG.model_copy(update={"consent_share": 0.5, "feedback_share": 1.0}))
    refused = [row for row in rows if not row["consent"]]
    assert refused and len(refused) < len(rows)
    for row in refused:
        assert (row["messages"], row["response"], row["token_ids"], row["feedback"]) == ([], "", [], [])


def test_duplicates_are_there_to_be_found(tmp_path, inputs):
    rows = play(tmp_path, inputs, config=CONFIG.model_copy(update={"consent_share": 1.0, "duplicate_share": 0.5}))
    questions = [str(row["messages"]) for row in rows]
    assert len(questions) - len(set(questions)) >= 4


def test_equal_inputs_and_seed_give_equal_bytes_with_the_real_engine(tmp_path, inputs):
    write_checkpoint(tmp_path / "release" / "model")
    write_json(tmp_path / "release" / "release.json", {"champion": "align", "path": "model"})
    write_json(tmp_path / "release" / "harness.json", {"max_turns": 3})
    config = CONFIG.model_copy(update={"max_tokens": 12})
    outs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ctx = context(tmp_path, name, seed)
        traffic(config, inputs, ctx)
        outs.append((ctx.out / "requests.jsonl").read_bytes())
        assert (ctx.out / "log" / "traffic.sqlite").exists()
        assert not (ctx.out / "log" / "traffic.sqlite-wal").exists()
    assert outs[0] == outs[1] != outs[2]
    assert read_jsonl(tmp_path / "a" / "out" / "requests.jsonl")[0]["model"] == "align"


def test_live_traffic_is_exported_and_refused_once_it_changed(tmp_path, inputs):
    play(tmp_path, inputs)
    database = tmp_path / "a" / "out" / "log" / "traffic.sqlite"
    records = Records.open(database)
    config = TrafficConfig(live=LiveTraffic(database=str(database)), live_digest=traffic_digest(records))
    ctx = context(tmp_path, "live")
    traffic(config, {}, ctx)
    rows = read_jsonl(ctx.out / "requests.jsonl")
    assert rows == export_rows(records) and rows[0]["id"].startswith("chatcmpl-")
    kept = next(row for row in rows if row["consent"])
    records.add_feedback(kept["id"], "thumbs", "down")
    records.close()
    with pytest.raises(UserError, match="changed since"):
        traffic(config, {}, context(tmp_path, "late"))


def test_users_ask_what_training_has_not_seen(tmp_path):
    tasks = load_tasks(write_tasks(tmp_path / "tasks", 10) / "train.jsonl")
    chosen = unseen_tail(tasks, 6)
    assert [task.id for task in chosen] == [f"{name}-{n}" for n in (9, 8, 7) for name in ("arithmetic", "safety")]
    with pytest.raises(UserError, match="fewer than the 100"):
        unseen_tail(tasks, 100)
    few = CONFIG.model_copy(update={"conversations": 10})
    assert cast(tasks, few, 5) == cast(tasks, few, 5) != cast(tasks, few, 6)


def test_users_ask_about_the_chosen_task_sets_and_never_what_needs_tools(tmp_path, inputs):
    file = inputs["tasks"] / "train.jsonl"
    tool = {**read_jsonl(file)[0], "id": "tool", "task_set": "shop", "tags": ["tools"]}
    write_jsonl(file, [*read_jsonl(file), tool])
    sets = {task.task_set for task in asked_about(CONFIG, inputs["tasks"])}
    assert sets == {"arithmetic", "safety"}
    chosen = asked_about(CONFIG.model_copy(update={"tasks": ("tag:must_refuse",)}), inputs["tasks"])
    assert chosen and all("must_refuse" in task.tags for task in chosen)
    with pytest.raises(UserError, match="no tasks of 'poetry'"):
        asked_about(CONFIG.model_copy(update={"tasks": ("poetry",)}), inputs["tasks"])
    write_jsonl(file, [tool])
    with pytest.raises(UserError, match="needs tools"):
        asked_about(CONFIG, inputs["tasks"])


def test_a_conversation_too_long_for_the_model_is_left_out(tmp_path, inputs):
    engine = ScriptedEngine(tiny_tokenizer(tmp_path / "tokenizer"), reply)
    config = CONFIG.model_copy(update={"consent_share": 1.0, "follow_up_share": 1.0, "pii_share": 0.0})
    rows = scripted_rows(config, served(engine, context=110), inputs, context(tmp_path))
    assert 0 < len(rows) < 32
    assert all(len(row["prompt_token_ids"]) + 80 <= 110 for row in rows)


def test_a_failing_engine_stops_the_stage_and_leaves_no_thread_waiting(tmp_path, inputs):
    def broken(text, seed):
        raise ValueError("broken")

    engine = ScriptedEngine(tiny_tokenizer(tmp_path / "tokenizer"), broken)
    with pytest.raises(RuntimeError, match="answered 500"):
        scripted_rows(CONFIG, served(engine), inputs, context(tmp_path))


def test_live_settings_come_in_pairs():
    with pytest.raises(ValueError, match="together"):
        TrafficConfig(live=LiveTraffic(database="x.sqlite"))
