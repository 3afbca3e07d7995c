"""Retraining on traffic: users' rows beside a replay, from a release directory."""

import shutil

import pytest

from loopline.base.errors import UserError
from loopline.base.files import write_jsonl
from loopline.chat.load import load_tokenizer
from loopline.model.checkpoint import load_model
from loopline.posttrain.config import RetrainConfig
from loopline.posttrain.stage import retrain
from loopline.training.batch import build_batch
from loopline.training.conversations import message_example
from loopline.training.objectives import NextToken
from tests.support import make_artifact, make_context
from tests.support_stages import OFTEN, changed_weights, check_training_stage

SMALL = RetrainConfig(
    steps=6, examples_per_step=8, rows_per_batch=4, replay={"arithmetic": 0.6, "lookup": 0.4}, runtime=OFTEN
)
ROWS = [
    {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word * 2}]}
    for word in ("ho", "hey", "<|user|>")
]


@pytest.fixture
def inputs(world, tmp_path):
    shutil.copytree(world["policy"].path, tmp_path / "release" / "model")
    write_jsonl(tmp_path / "traffic" / "sft.jsonl", ROWS)
    release, traffic = make_artifact(tmp_path / "release", "release"), make_artifact(tmp_path / "traffic")
    return {"policy": release, "traffic": traffic, "tasks": world["tasks"]}


def loss_of(path, rows):
    tokenizer = load_tokenizer(path)
    batch = build_batch([[message_example(tokenizer, row["messages"], "row")] for row in rows])
    total, count, _ = NextToken().loss(load_model(path), batch)
    return total.item() / count


def test_the_champion_learns_what_traffic_brought_twice_and_after_a_crash(inputs, tmp_path):
    done = check_training_stage(retrain, SMALL, inputs, tmp_path, 6)
    champion = inputs["policy"] / "model"
    assert changed_weights(champion, done.out)
    assert loss_of(done.out, ROWS) < loss_of(champion, ROWS) - 0.1
    assert done.metrics.values["traffic_rows"] == 3


def test_traffic_without_a_usable_row_is_refused(inputs, tmp_path):
    write_jsonl(tmp_path / "none" / "sft.jsonl", [])
    inputs["traffic"] = make_artifact(tmp_path / "none")
    with pytest.raises(UserError, match=r"held no usable row.*Fix: collect more feedback"):
        retrain(SMALL, inputs, make_context(tmp_path / "c"))


def test_bad_rows_are_named_before_training(inputs, tmp_path):
    for name, rows, words in (
        ("question", [*ROWS, {"messages": [{"role": "user", "content": "hm?"}]}], "sft.jsonl row 3 has no assistant"),
        ("long", [{"messages": [*ROWS[0]["messages"], *ROWS[0]["messages"] * 30]}], "of traffic are longer than a row"),
    ):
        write_jsonl(tmp_path / name / "sft.jsonl", rows)
        context = make_context(tmp_path / f"c-{name}")
        with pytest.raises(UserError, match=words):
            retrain(SMALL, {**inputs, "traffic": make_artifact(tmp_path / name)}, context)
        assert not (context.out / "log").exists()


def test_a_release_without_a_model_is_refused(inputs, tmp_path):
    with pytest.raises(UserError, match=r"has no tokenizer\.json.*Fix: "):
        retrain(SMALL, {**inputs, "policy": make_artifact(tmp_path / "empty")}, make_context(tmp_path / "c"))
