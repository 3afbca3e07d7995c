"""Supervised fine-tuning: demonstrations, files and rows, in the parts that were asked for, without held-out text."""

import json
import shutil

import pytest
from pydantic import ValidationError

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_jsonl
from loopline.chat.load import load_tokenizer
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.checkpoint import load_model
from loopline.posttrain.data import mix
from loopline.posttrain.sft import sft
from loopline.posttrain.sft_config import SFTConfig
from loopline.store.artifact import Artifact
from loopline.tasks.config import DataConfig
from loopline.tasks.task import load_tasks
from loopline.training import finetune
from loopline.training.batch import build_batch
from loopline.training.config import DevelopmentConfig, OptimizerConfig
from loopline.training.conversations import conversation_example
from loopline.training.objectives import NextToken
from tests.support import make_artifact, make_context
from tests.support_stages import OFTEN, changed_weights, check_training_stage

ALL = {"arithmetic": 0.3, "word_problem": 0.2, "ordering": 0.2, "code": 0.1, "format": 0.1, "safety": 0.1}
SMALL = {
    "steps": 6, "batch_size": 8, "sequence_length": 224, "rows_per_batch": 2, "runtime": OFTEN,
    "optimizer": OptimizerConfig(kind="muon", learning_rate=3e-3),
}  # fmt: skip
ROWS = [
    {"id": word, "messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word * 2}]}
    for word in ("ho", "hey", "<|user|>")
]


@pytest.fixture
def inputs(world):
    return {"policy": world["base"], "tasks": world["tasks"]}


def rows_artifact(path, rows=ROWS):
    write_jsonl(path / "rows.jsonl", rows)
    return make_artifact(path, stage="rows")


def file_artifact(path, rows):
    write_jsonl(path, rows)
    return Artifact(path, "data", "file", "x", "x")


def test_a_base_becomes_a_checkpoint_twice_and_after_a_crash(inputs, tmp_path):
    done = check_training_stage(sft, SFTConfig(**SMALL, tasks={**ALL, "lookup": 0.1}), inputs, tmp_path, 6)
    assert changed_weights(inputs["policy"].path, done.out)
    facts = read_json(done.out / "training.json")
    assert facts["rows"] == done.metrics.values["rows"] == 60
    assert sum(entry["share"] for entry in facts["sources"].values()) == pytest.approx(1, abs=1e-5)


def test_enough_of_it_makes_the_policy_answer_as_written(world):
    engine = TorchEngine.from_checkpoint(world["policy"].path)
    tasks = load_tasks(world["tasks"] / "train.jsonl", ["arithmetic", "ordering"])
    prompts = [engine.tokenizer.render(task.messages, add_generation_prompt=True) for task in tasks]
    answers = [engine.tokenizer.decode(c.token_ids) for (c,) in engine.generate(prompts, Sampling(8, temperature=0))]
    assert sum(a == f"{task.answer}<|end|>" for a, task in zip(answers, tasks, strict=True)) > 0.9 * len(tasks)


def test_rows_that_are_too_long_are_refused_before_the_first_step_or_left_out(inputs, tmp_path):
    context = make_context(tmp_path / "a")
    short = {**SMALL, "sequence_length": 40, "tasks": {"arithmetic": 0.5, "lookup": 0.5}}
    with pytest.raises(UserError, match=r"rows are longer than the 40 tokens .* the longest, lookup-.*length=\d+"):
        sft(SFTConfig(**short), inputs, context)
    assert not (context.out / "log").exists()
    context = make_context(tmp_path / "b")
    sft(SFTConfig(**{**short, "overlong": "truncate"}), inputs, context)
    sources = read_json(context.out / "training.json")["sources"]
    assert sources["lookup"]["cut"] + sources["lookup"].get("too long", 0) > 0


def test_task_sets_and_files_that_are_missing_are_named(inputs, tmp_path):
    with pytest.raises(UserError, match=r"no task set 'poetry'.*Fix: "):
        sft(SFTConfig(tasks={"poetry": 1.0}), inputs, make_context(tmp_path / "a"))
    empty = make_artifact(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no file .*heldout\.jsonl|no file .*sets\.json"):
        sft(SFTConfig(tasks=ALL), {**inputs, "tasks": empty}, make_context(tmp_path / "b"))
    with pytest.raises(UserError, match=r"has no tokenizer\.json.*Fix: "):
        sft(SFTConfig(tasks=ALL), {**inputs, "policy": empty}, make_context(tmp_path / "c"))
    with pytest.raises(UserError, match=r"needs task sets, but there are none.*Fix: define them"):
        sft(SFTConfig(tasks=ALL), {"policy": inputs["policy"]}, make_context(tmp_path / "d"))
    with pytest.raises(UserError, match=r"nothing to train on.*Fix: set `data`"):
        sft(SFTConfig(), inputs, make_context(tmp_path / "e"))
    with pytest.raises(UserError, match=r"no file .*rows\.jsonl"):
        sft(SFTConfig(), {**inputs, "rows": empty}, make_context(tmp_path / "f"))


def loss_of(path, rows):
    tokenizer = load_tokenizer(path)
    batch = build_batch([[conversation_example(tokenizer, row["messages"], "row")] for row in rows])
    total, count, _ = NextToken().loss(load_model(path), batch)
    return total.item() / count


def test_a_release_learns_what_traffic_brought_beside_a_replay(world, tmp_path):
    shutil.copytree(world["policy"].path, tmp_path / "release" / "model")
    config = SFTConfig(
        **SMALL, shares={"rows": 0.5, "tasks": 0.5}, tasks={"arithmetic": 0.6, "lookup": 0.4}, styles={"direct": 0}
    )
    inputs = {
        "policy": make_artifact(tmp_path / "release", "release"),
        "tasks": world["tasks"],
        "rows": rows_artifact(tmp_path / "traffic"),
    }
    done = check_training_stage(sft, config, inputs, tmp_path, 6)
    champion = inputs["policy"] / "model"
    assert changed_weights(champion, done.out)
    assert loss_of(done.out, ROWS) < loss_of(champion, ROWS) - 0.1
    sources = read_json(done.out / "training.json")["sources"]
    shares = {name: entry["share"] for name, entry in sources.items()}
    assert shares == {"rows": 0.5, "arithmetic": 0.3, "lookup": 0.2}
    assert sources["rows"]["rows"] == 3


def test_sources_get_the_parts_of_a_step_that_are_asked_for():
    items = {"data": range(6), "rows.a": range(1), "rows.b": range(3), "math": range(10), "code": range(10)}
    sets = {"math": 3.0, "code": 1.0}
    shares = {"data": 2.0, "rows": 1.0, "tasks": 1.0}
    assert mix(items, sets, shares) == {"data": 2, "rows.a": 0.25, "rows.b": 0.75, "math": 0.75, "code": 0.25}
    # By size where nothing is said, task sets together by theirs.
    assert mix(items, sets, {}) == {"data": 6, "rows.a": 1, "rows.b": 3, "math": 15, "code": 5}
    with pytest.raises(UserError, match="`shares` names no part for rows.*Fix: give shares of data, rows, tasks"):
        mix(items, sets, {"data": 1, "tasks": 1})
    with pytest.raises(UserError, match="`shares` names a part for what is not given: rows"):
        mix({"data": range(6)}, {}, {"data": 1, "rows": 1})
    with pytest.raises(ValidationError, match="shares are of data, rows and tasks, not of 'math'"):
        SFTConfig(shares={"math": 1.0})


def test_two_students_that_differ_in_the_rows_alone_see_as_many_of_each_kind(world, tmp_path, monkeypatch):
    sources = []
    plain = finetune.SetSource
    monkeypatch.setattr(finetune, "SetSource", lambda *args: sources.append(plain(*args)) or sources[-1])
    common = {**SMALL, "steps": 1}
    taught = SFTConfig(**common, shares={"rows": 0.75, "tasks": 0.25}, tasks={"code": 0.6, "lookup": 0.4})
    control = SFTConfig(**common, tasks={"arithmetic": 0.75, "code": 0.15, "lookup": 0.1})
    inputs = {"policy": world["base"], "tasks": world["tasks"]}
    sft(taught, {**inputs, "rows": rows_artifact(tmp_path / "rows")}, make_context(tmp_path / "a"))
    sft(control, inputs, make_context(tmp_path / "b"))
    first, second = (source.shares for source in sources)
    assert {name: first[name] for name in ("code", "lookup")} == pytest.approx(
        {name: second[name] for name in ("code", "lookup")}
    )
    assert first["rows"] == pytest.approx(second["arithmetic"])


def test_a_file_is_read_as_its_settings_say(world, tmp_path):
    rows = [{"q": f"say {n}", "a": str(n) * 3, "note": "x"} for n in range(5)]
    data = file_artifact(tmp_path / "mine.jsonl", rows)
    read = DataConfig(columns={"prompt": "q", "completion": "a"}, limit=4, template="Please {prompt}")
    context = make_context(tmp_path / "run")
    sft(SFTConfig(**SMALL, read=read), {"policy": world["base"], "data": data}, context)
    facts = read_json(context.out / "training.json")
    assert facts["rows"] == 4 and facts["sources"] == {"data": {"rows": 4, "share": 1.0}}
    assert facts["read"]["data"] == {
        "format": "jsonl", "layout": ["prompt", "completion"], "left_out": {}, "rows": 4, "rows_in_file": 5,
        "unused_columns": ["note"],
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(facts)


def test_epochs_become_steps(world, tmp_path):
    data = file_artifact(tmp_path / "mine.jsonl", ROWS)
    context = make_context(tmp_path / "run")
    config = SFTConfig(**{**SMALL, "steps": None, "epochs": 3.0, "batch_size": 2})
    sft(config, {"policy": world["base"], "data": data}, context)
    assert context.metrics.values["steps"] == 5
    assert len(read_jsonl(context.out / "log" / "metrics.jsonl")) == 5


@pytest.mark.parametrize("part", ["dev", "heldout"])
def test_rows_and_demonstrations_that_hold_a_task_kept_for_testing_are_left_out(world, tmp_path, part):
    secret = "Natalia sold clips to forty eight of her friends in April and then half as many in May"
    task = {"id": "t", "task_set": "clips", "grader": "final_answer", "messages": [{"role": "user", "content": secret}]}
    answer = [{"style": "direct", "messages": [{"role": "assistant", "content": "72"}]}]
    other = {**task, "id": "u", "messages": [{"role": "user", "content": "Two and two?"}], "responses": answer}
    folder = tmp_path / "tasks"
    write_jsonl(folder / "train.jsonl", [{**task, "id": "v", "responses": answer}, other])
    write_jsonl(folder / f"{part}.jsonl", [{**task, "part": part}])
    (folder / "sets.json").write_text('{"clips": {"tags": ["reasoning"]}}')
    rows = [
        *ROWS,
        {"id": "leak", "messages": [*ROWS[0]["messages"][:1], {"role": "assistant", "content": secret.upper()}]},
    ]
    inputs = {
        "policy": world["base"],
        "tasks": make_artifact(folder, stage="tasks"),
        "data": file_artifact(tmp_path / "mine.jsonl", rows),
    }
    context = make_context(tmp_path / "run")
    sft(SFTConfig(**{**SMALL, "steps": 1}, tasks={"tag:reasoning": 1.0}), inputs, context)
    facts = read_json(context.out / "training.json")
    assert facts["sources"]["data"]["rows"] == 3 and facts["sources"]["clips"]["rows"] == 1
    assert facts["read"]["data"]["left_out"] == facts["read"]["tasks"]["left_out"] == {"held-out text": 1}
    with pytest.raises(UserError, match="every row holds text of a task that is kept for testing"):
        sft(SFTConfig(), {**inputs, "data": file_artifact(tmp_path / "leak.jsonl", rows[3:])}, make_context(tmp_path))


def test_training_is_measured_on_development_tasks_and_ends_with_the_best_weights(world, tmp_path):
    evaluate = DevelopmentConfig(every=2, tasks=("arithmetic",), n=3, max_new_tokens=8)
    context = make_context(tmp_path)
    config = SFTConfig(**SMALL, tasks={"arithmetic": 1.0}, evaluate=evaluate)
    sft(config, {"policy": world["policy"], "tasks": world["tasks"], "graders": world["graders"]}, context)
    found = read_json(context.out / "development.json")
    assert [row["step"] for row in found["measured"]] == [2, 4, 6]
    assert found["best"]["score"] == max(row["score"] for row in found["measured"])
