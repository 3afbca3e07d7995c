"""Reward models and every preference loss on a stock checkpoint: they learn, load elsewhere, refuse what is wrong."""

import math
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_jsonl
from loopline.chat.load import load_tokenizer
from loopline.model.checkpoint import load_model
from loopline.posttrain.pairs import pair_items
from loopline.posttrain.preference import objective_of, preference, with_reference
from loopline.posttrain.preference_config import PairLoss, PreferenceConfig, RewardModelConfig
from loopline.posttrain.reward import reward
from loopline.posttrain.scoring import score_conversations
from loopline.store.artifact import Artifact
from loopline.training.config import OptimizerConfig
from loopline.training.conversations import steps_example
from loopline.training.objectives.preference import PAIR_LOSSES
from tests.support import make_artifact, make_context
from tests.support_stock import stock_checkpoint

PAIRS = [
    {"id": f"p{n}", "prompt": f"How much is {n}+1?", "chosen": f"It is {n + 1}", "rejected": f"{n + 2} clips"}
    for n in range(12)
]
LEARN = {"steps": 4, "batch_size": 4, "rows_per_batch": 2, "optimizer": OptimizerConfig(learning_rate=0.003)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return stock_checkpoint(tmp_path_factory.mktemp("model"))


def tune(stage, config, model, rows, out):
    """Run a stage on rows in a file; its context."""
    write_jsonl(out / "rows.jsonl", rows)
    context = make_context(out)
    data = Artifact(out / "rows.jsonl", "data", "file", "x", "x")
    stage(config, {"policy": Artifact(model, "model", "checkpoint", "x", "x"), "data": data}, context)
    return context


def test_every_loss_of_pairs_is_offered_and_builds():
    offered = {"sigmoid" if name == "dpo" else name.removeprefix("dpo_") for name in get_args(PairLoss)}
    assert offered == set(PAIR_LOSSES)
    for name in get_args(PairLoss):
        smoothing = 0.1 if name == "dpo_exo_pair" else 0.0
        assert objective_of(PreferenceConfig(loss=name, label_smoothing=smoothing)).beta == 0.1


@pytest.mark.parametrize("loss", ["dpo", "ipo", "dpo_hinge", "kto", "apo_zero_unpaired", "orpo", "simpo", "cpo"])
def test_every_loss_runs_and_prefers_the_chosen(model, tmp_path, loss):
    done = tune(preference, PreferenceConfig(**LEARN, loss=loss), model, PAIRS, tmp_path)
    curve = read_jsonl(done.out / "log" / "metrics.jsonl")
    assert [row["step"] for row in curve] == [0, 1, 2, 3] and all(math.isfinite(row["loss"]) for row in curve)
    first, last = (row["chosen_reward"] - row["rejected_reward"] for row in (curve[0], curve[-1]))
    assert last > first
    assert done.metrics.values["rows"] == (24 if loss in ("kto", "apo_zero_unpaired") else 12)


def test_dpo_starts_at_log_two_against_the_model_it_starts_from(model, tmp_path):
    done = tune(preference, PreferenceConfig(**{**LEARN, "steps": 1}), model, PAIRS, tmp_path)
    (row,) = read_jsonl(done.out / "log" / "metrics.jsonl")
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_preferences_of_an_earlier_stage_are_read_beside_a_file(model, tmp_path):
    def side(text):
        return [{"role": "assistant", "content": text}]

    rows = [
        {"id": f"p{n}", "input": {"messages": [{"role": "user", "content": f"{n}?"}]},
         "preferred_output": side("yes"), "non_preferred_output": side("no"), "source": "traffic"}
        for n in range(3)
    ]  # fmt: skip
    write_jsonl(tmp_path / "earlier" / "preferences.jsonl", rows)
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    inputs = {
        "policy": Artifact(model, "model", "checkpoint", "x", "x"),
        "data": Artifact(tmp_path / "pairs.jsonl", "data", "file", "x", "x"),
        "rows.traffic": make_artifact(tmp_path / "earlier", stage="traffic"),
    }
    context = make_context(tmp_path / "run")
    preference(PreferenceConfig(**{**LEARN, "steps": 1}), inputs, context)
    facts = read_json(context.out / "training.json")
    assert facts["rows"] == 15 and {name: entry["rows"] for name, entry in facts["read"].items()} == {
        "data": 12, "rows.traffic": 3,
    }  # fmt: skip


@pytest.mark.parametrize("loss", ["bradley_terry", "pointwise"])
def test_a_reward_model_learns_and_scores_as_transformers_does(model, tmp_path, loss):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    done = tune(reward, RewardModelConfig(**{**LEARN, "steps": 30}, loss=loss), model, PAIRS, tmp_path)
    assert done.metrics.values["accuracy"] >= 0.75
    talks = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        for row in PAIRS
        for side in ("chosen", "rejected")
    ]
    scores = score_conversations(done.out, talks)
    assert sum(a > b for a, b in zip(scores[0::2], scores[1::2], strict=True)) >= 10
    tokenizer = AutoTokenizer.from_pretrained(done.out)
    theirs = AutoModelForSequenceClassification.from_pretrained(done.out).eval()
    for talk, score in zip(talks[:3], scores, strict=False):
        ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            assert theirs(**ids).logits[0, 0].item() == pytest.approx(score, abs=1e-4)
    with pytest.raises(UserError, match="is no reward model"):
        score_conversations(model, talks)


def test_what_cannot_be_preferred_is_refused(model, tmp_path):
    rows = [{"prompt": f"{n}?", "completion": "yes", "label": True} for n in range(4)]
    with pytest.raises(UserError, match=r"All 4 labels are above 0.*Fix: "):
        tune(preference, PreferenceConfig(loss="kto"), model, rows, tmp_path / "a")
    rows = [{"prompt": "the same?", "completion": "yes", "label": n % 2} for n in range(4)]
    with pytest.raises(UserError, match=r"All rows have the same prompt"):
        tune(preference, PreferenceConfig(loss="kto"), model, rows, tmp_path / "b")
    with pytest.raises(UserError, match=r"has the columns completion, label, prompt, but pairs are read from"):
        tune(preference, PreferenceConfig(), model, rows, tmp_path / "c")
    with pytest.raises(UserError, match=r"There are no preferences to train on.*Fix: set `data`"):
        preference(PreferenceConfig(), {"policy": Artifact(model, "m", "checkpoint", "x", "x")}, make_context(tmp_path))


def test_settings_that_a_loss_does_not_have_are_refused():
    for settings in ({"gamma": 2.0}, {"loss": "orpo", "sft_weight": 0.2}, {"loss": "ipo", "label_smoothing": 0.1}):
        with pytest.raises(ValidationError, match=r"the loss \w+ has no \w+; it belongs to"):
            PreferenceConfig(**settings)
    with pytest.raises(ValidationError, match="needs label_smoothing above 0"):
        PreferenceConfig(loss="dpo_exo_pair")


def test_sides_that_differ_in_what_the_template_drops_are_refused():
    class Drops:
        """A template that strips the reasoning of an answer."""

        def render_with_mask(self, messages, name, **settings):
            ids = [len(str(m["content"]).rpartition("</think>")[2]) for m in messages]
            return ids, [m["role"] == "assistant" for m in messages]

    row = {
        "id": "row 7",
        "prompt": [{"role": "user", "content": "3+4?"}],
        "chosen": [{"role": "assistant", "content": "<think>3 and 4 make 7</think>7"}],
        "rejected": [{"role": "assistant", "content": "<think>guess</think>7"}],
    }
    with pytest.raises(
        UserError, match="row 7: the chosen and the rejected answer differ only in what the chat template"
    ):
        pair_items([row], Drops())


STEPS = [
    {"prompt": f"{n}+2+3?", "steps": [f"{n}+2={n + 2}", f"{n + 2}+3={n + 5 + wrong}"], "labels": [True, not wrong]}
    for n in range(12)
    for wrong in (0, 4)
]


def test_a_process_reward_model_learns_which_steps_are_right(model, tmp_path):
    settings = {**LEARN, "steps": 40, "batch_size": 8, "optimizer": OptimizerConfig(learning_rate=0.01)}
    done = tune(reward, RewardModelConfig(**settings, loss="process"), model, STEPS, tmp_path)
    curve = read_jsonl(done.out / "log" / "metrics.jsonl")
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"] and done.metrics.values["rows"] == 24
    # Two steps per row count, however long they are.
    assert 0 <= curve[-1]["accuracy"] <= 1


def test_the_label_stands_at_the_last_token_of_each_step(model):
    tokenizer = load_tokenizer(model)
    prompt = [{"role": "user", "content": "1+2+3?"}]
    example = steps_example(tokenizer, prompt, ["1+2=3", "3+3=7"], [1.0, 0.0], "\n", "row")
    ends = [place for place, weight in enumerate(example.weights) if weight]
    assert [example.extras["label"][place] for place in ends] == [1.0, 0.0]
    head = len(tokenizer.render(prompt, add_generation_prompt=True))
    assert tokenizer.decode(example.tokens[head : ends[0] + 1]) == "1+2=3\n"
    assert tokenizer.decode(example.tokens[ends[0] + 1 : ends[1] + 1]) == "3+3=7\n"
    # Whatever follows, a step has the same tokens.
    alone = steps_example(tokenizer, prompt, ["1+2=3"], [1.0], "\n", "row")
    assert alone.tokens[: ends[0] + 1] == example.tokens[: ends[0] + 1]
    with pytest.raises(UserError, match="row: step 2 is empty"):
        steps_example(tokenizer, prompt, ["1", " "], [1.0, 0.0], "\n", "row")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a?", "steps": ["b"], "labels": [True, False]}, "1 steps have 2 labels"),
        ({"prompt": "a?", "steps": "b", "labels": [True]}, "no list of texts"),
        ({"prompt": "a?", "steps": ["b"], "labels": ["yes"]}, "no list of true and false"),
        ({"prompt": "a?", "steps": ["b"], "labels": [2]}, "outside 0 to 1"),
    ],
)
def test_steps_that_cannot_be_read_are_refused(model, tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        tune(reward, RewardModelConfig(loss="process"), model, [row], tmp_path)


def test_references_are_the_log_probs_of_the_answers_under_the_start(world, tmp_path):
    model, tokenizer = load_model(world["policy"].path), load_tokenizer(world["policy"].path)
    prompt = [{"role": "user", "content": "2-1=?"}]
    row = {
        "id": "x",
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": "1"}],
        "rejected": [{"role": "assistant", "content": "16"}],
    }
    groups = [item.examples for item in pair_items([row], tokenizer)]
    ((chosen, rejected),) = with_reference(model, groups, make_context(tmp_path))
    for side, text in ((chosen, "1"), (rejected, "16")):
        asked, answer = tokenizer.render(prompt, add_generation_prompt=True), [*tokenizer.encode(text), 1]
        with torch.no_grad():
            scores = model.logits(model(torch.tensor([[*asked, *answer]])))[0].log_softmax(-1)
        expected = sum(float(scores[len(asked) - 1 + i, token]) for i, token in enumerate(answer))
        assert side.scalars["reference"] == pytest.approx(expected, rel=1e-4)
        assert list(side.tokens) == [*asked, *answer]
    # The policy was taught this answer.
    assert chosen.scalars["reference"] > rejected.scalars["reference"]
