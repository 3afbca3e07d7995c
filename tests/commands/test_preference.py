"""Reward models and every preference loss on a stock checkpoint: they learn, load elsewhere, refuse what is wrong."""

import math

import pytest
import torch

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl
from loopline.chat.load import load_tokenizer
from loopline.commands.config import PreferenceConfig
from loopline.commands.preference import objective_of
from loopline.commands.run import Request, run_command
from loopline.posttrain.scoring import score_conversations
from loopline.training.conversations import steps_example
from loopline.training.objectives import OBJECTIVES
from tests.commands.support import stock_checkpoint, write_rows

PAIRS = [
    {"id": f"p{n}", "prompt": f"How much is {n}+1?", "chosen": f"It is {n + 1}", "rejected": f"{n + 2} clips"}
    for n in range(12)
]
LEARN = ("steps=4", "pairs_per_step=4", "pairs_per_batch=2", "optimizer.learning_rate=0.003")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return stock_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", PAIRS)


@pytest.fixture(autouse=True)
def _as_before():
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


def tune(command, model, data, out, *overrides, **options):
    return run_command(Request(command, model, data, out, overrides=overrides, threads=1, **options))


def test_the_losses_offered_are_the_registered_ones():
    offered = set(PreferenceConfig.model_fields["loss"].annotation.__args__)
    others = {"next_token", "dynamic_next_token", "bradley_terry", "pointwise", "process_reward"}
    trained = {name for name in OBJECTIVES if name.startswith(("dpo", "ipo", "kto", "orpo", "simpo", "cpo"))}
    assert offered == trained and not offered & others


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "orpo", "simpo", "cpo"])
def test_every_loss_runs_and_prefers_the_chosen(model, pairs, tmp_path, loss):
    done = tune("dpo", model, pairs, tmp_path, *LEARN, f"loss={loss}")
    curve = read_jsonl(tmp_path / "model/log/metrics.jsonl")
    assert [row["step"] for row in curve] == [0, 1, 2, 3] and all(math.isfinite(row["loss"]) for row in curve)
    first, last = (row["chosen_reward"] - row["rejected_reward"] for row in (curve[0], curve[-1]))
    assert last > first
    assert done["metrics"]["rows"] == (24 if loss == "kto" else 12)


def test_dpo_starts_at_log_two_against_the_model_it_starts_from(model, pairs, tmp_path):
    tune("dpo", model, pairs, tmp_path, "steps=1", "pairs_per_step=4")
    (row,) = read_jsonl(tmp_path / "model/log/metrics.jsonl")
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_changed_loss_runs_again_and_says_so(model, pairs, tmp_path):
    said = []
    tune("dpo", model, pairs, tmp_path, "steps=1")
    run_command(Request("dpo", model, pairs, tmp_path, overrides=["steps=1", "loss=ipo"], threads=1), say=said.append)
    assert said[0] == "[2/2] dpo: dpo.loss changed from dpo to ipo"


@pytest.mark.parametrize("loss", ["bradley_terry", "pointwise"])
def test_a_reward_model_learns_and_scores_as_transformers_does(model, pairs, tmp_path, loss):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    done = tune("reward", model, pairs, tmp_path, *LEARN, "steps=30", f"loss={loss}")
    assert done["metrics"]["accuracy"] >= 0.75
    talks = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        for row in PAIRS
        for side in ("chosen", "rejected")
    ]
    scores = score_conversations(tmp_path / "model", talks)
    assert sum(a > b for a, b in zip(scores[0::2], scores[1::2], strict=True)) >= 10
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    for talk, score in zip(talks[:3], scores, strict=False):
        ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            assert theirs(**ids).logits[0, 0].item() == pytest.approx(score, abs=1e-4)
    with pytest.raises(UserError, match="is no reward model"):
        score_conversations(model, talks)


def test_best_of_n_by_a_reward_model(model, pairs, tmp_path):
    judge = tmp_path / "judge"
    tune("reward", model, pairs, judge, "steps=1")
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in PAIRS])
    grader = tmp_path / "any.py"
    grader.write_text("def grade(sample, item):\n    return 1.0\n")
    settings = ("steps=1", "samples=4", "max_new_tokens=100", "minimum=1", "select=best")
    options = {"grader": str(grader), "force_grader": True, "reward_model": judge}
    tune("reject", model, prompts, tmp_path / "out", *settings, **options)
    kept = {row["task"]: row["messages"][-1]["content"] for row in read_jsonl(tmp_path / "out/model/accepted.jsonl")}
    assert kept
    for group in read_jsonl(tmp_path / "out/model/samples.jsonl"):
        ranked = [output for output in group["outputs"] if "rank" in output and output["length"] <= 512]
        if group["task"] in kept:
            best = max(output["rank"] for output in ranked)
            assert kept[group["task"]] in {output["text"] for output in ranked if output["rank"] == best}


def test_what_cannot_be_preferred_is_refused(model, tmp_path):
    rows = [{"prompt": f"{n}?", "completion": "yes", "label": True} for n in range(4)]
    with pytest.raises(UserError, match=r"All 4 labels are above 0.*Fix: "):
        tune("dpo", model, write_rows(tmp_path / "a.jsonl", rows), tmp_path / "a", "loss=kto")
    rows = [{"prompt": "the same?", "completion": "yes", "label": n % 2} for n in range(4)]
    with pytest.raises(UserError, match=r"All rows have the same prompt"):
        tune("dpo", model, write_rows(tmp_path / "b.jsonl", rows), tmp_path / "b", "loss=kto")
    with pytest.raises(UserError, match=r"b\.jsonl has the columns prompt, completion, label, but .* chosen and rej"):
        tune("dpo", model, tmp_path / "b.jsonl", tmp_path / "c")
    with pytest.raises(UserError, match=r"dpo\.loss: Input should be 'dpo', 'ipo'"):
        tune("dpo", model, tmp_path / "b.jsonl", tmp_path / "c", "loss=ppo")
    with pytest.raises(UserError, match="'simpo' does not take these settings"):
        objective_of(PreferenceConfig(loss="simpo", settings={"margin": 1.0}))


STEPS = [
    {"prompt": f"{n}+2+3?", "steps": [f"{n}+2={n + 2}", f"{n + 2}+3={n + 5 + wrong}"], "labels": [True, not wrong]}
    for n in range(12)
    for wrong in (0, 4)
]


def test_a_process_reward_model_learns_which_steps_are_right(model, tmp_path):
    data = write_rows(tmp_path / "steps.jsonl", STEPS)
    words = ("steps=40", "pairs_per_step=8", "loss=process", "optimizer.learning_rate=0.01")
    done = tune("reward", model, data, tmp_path / "out", *words)
    curve = read_jsonl(tmp_path / "out/model/log/metrics.jsonl")
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"] and done["metrics"]["rows"] == 24
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
    data = write_rows(tmp_path / "steps.jsonl", [row])
    with pytest.raises(UserError, match=message):
        tune("reward", model, data, tmp_path / "out", "loss=process")
