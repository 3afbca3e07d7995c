"""The evaluation stage on real files: a tiny checkpoint, and a server."""

import json
from types import SimpleNamespace

import httpx
import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl
from loopline.evaluation import stage as module
from loopline.evaluation.bits import METRIC, bits_per_byte
from loopline.evaluation.config import EvaluateConfig
from loopline.evaluation.evaluate import headline, summarize
from loopline.evaluation.stage import evaluate
from loopline.inference.engine import TorchEngine
from loopline.inference.openai_engine import OpenAIEngine
from loopline.store.artifact import content_digest
from tests.support import make_context
from tests.support_stages import Killed, cut_off

SETS = ("arithmetic", "word_problem", "ordering", "code", "format", "safety", "lookup")
CONFIG = EvaluateConfig(n=4, max_new_tokens=8)


def summary_of(context):
    return read_json(context.out / "summary.json")["evaluations"]


def test_evaluation_of_a_checkpoint(tmp_path, evaluated):
    contexts = [make_context(tmp_path / name, seed=5) for name in ("a", "b")]
    for context in contexts:
        evaluate(CONFIG, evaluated, context)
    items = read_jsonl(contexts[0].out / "items.jsonl")
    assert len(items) == 2 * 2 * 4 * len(SETS), "modes, parts, tasks"
    assert {row["part"] for row in items} == {"dev", "heldout"}
    assert all({"task", "task_set", "tags", "sample", "messages", "output", "score"} <= row.keys() for row in items)
    assert all(1 <= row["tokens"] <= 8 for row in items)
    # An untrained model seldom stops within eight tokens: what is cut off scores zero and says so.
    cut = [row for row in items if row["finish"] == "length"]
    assert cut and all(row["score"] == 0 and row["flags"] == ["truncated"] for row in cut)
    rows = summary_of(contexts[0])
    for row in rows:
        tag = row["task"].removeprefix("tag:")
        members = [
            item
            for item in items
            if item["part"] == row["part"]
            and f"{item['mode']} pass@1" == row["metric"]
            and (tag in item["tags"] if row["task"].startswith("tag:") else item["task_set"] == tag)
        ]
        assert row["checkpoint"] == "sft" and row["n"] == len(members) > 0
        assert row["value"] == pytest.approx(sum(item["score"] for item in members) / len(members), abs=1e-6)
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1 and row["ungradable"] == 0
    assert {row["task"] for row in rows} == {*SETS, *(f"tag:{tag}" for item in items for tag in item["tags"])}
    assert {"tag:reasoning", "tag:must_refuse", "tag:must_answer"} <= {row["task"] for row in rows}
    assert content_digest(contexts[0].out) == content_digest(contexts[1].out)
    assert (contexts[0].out / "log" / "latency.json").exists()
    assert contexts[0].metrics.values["headline"].startswith("reasoning ")


def test_a_killed_evaluation_goes_on_to_the_same_bytes(tmp_path, evaluated, monkeypatch):
    monkeypatch.setattr("loopline.evaluation.evaluate.CHUNK_ATTEMPTS", 12)
    config = CONFIG.model_copy(update={"samples": 3})
    whole = make_context(tmp_path / "whole", seed=5)
    evaluate(config, evaluated, whole)
    with pytest.MonkeyPatch.context() as patch:
        cut_off(patch, TorchEngine, "generate", 4)
        with pytest.raises(Killed):
            evaluate(config, evaluated, make_context(tmp_path / "torn", seed=5))
    torn = make_context(tmp_path / "torn", seed=5)
    assert len(list((torn.state / "answers").iterdir())) == 4
    evaluate(config, evaluated, torn)
    assert content_digest(torn.out) == content_digest(whole.out)


def test_several_samples_are_one_observation_of_their_task(tmp_path, evaluated):
    context = make_context(tmp_path)
    config = EvaluateConfig(tasks=("format",), n=6, samples=4, parts=("dev",), max_new_tokens=4)
    evaluate(config, evaluated, context)
    items = read_jsonl(context.out / "items.jsonl")
    assert len(items) == 6 * 4 + 6
    metrics = {row["metric"]: row for row in summary_of(context) if row["task"] == "format"}
    assert set(metrics) == {f"sampled pass{name}" for name in ("@1", "@2", "@4", "^2", "^4")} | {"greedy pass@1"}
    assert all(row["n"] == 6 for row in metrics.values())
    values = [metrics[f"sampled pass{name}"]["value"] for name in ("^4", "^2", "@1", "@2", "@4")]
    assert values == sorted(values)
    assert context.metrics.values["headline"].startswith("development ")


def test_task_sets_are_chosen_by_name_and_tag_and_some_are_asked_more(tmp_path, evaluated):
    context = make_context(tmp_path)
    config = EvaluateConfig(
        tasks=("format", "tag:must_refuse"), n=2, n_by_set={"safety": 5}, max_new_tokens=2, parts=("heldout",)
    )
    evaluate(config, evaluated, context)
    rows = [row for row in summary_of(context) if not row["task"].startswith("tag:")]
    assert {(row["task"], row["n"]) for row in rows} == {("format", 2), ("safety", 5)}
    assert {row["part"] for row in rows} == {"heldout"}


def test_a_sample_depends_on_its_task_and_the_seed_only(tmp_path, evaluated):
    few, many, other = (make_context(tmp_path / name, seed=seed) for name, seed in (("f", 5), ("m", 5), ("o", 6)))
    settings = {"tasks": ("arithmetic",), "modes": ("sampled",), "max_new_tokens": 8}
    evaluate(EvaluateConfig(n=3, **settings), evaluated, few)
    evaluate(EvaluateConfig(n=12, **settings), evaluated, many)
    evaluate(EvaluateConfig(n=3, **settings), evaluated, other)
    outputs = [{row["task"]: row["output"] for row in read_jsonl(c.out / "items.jsonl")} for c in (few, many, other)]
    assert all(outputs[1][task] == text for task, text in outputs[0].items())
    assert outputs[0] != outputs[2]


def test_what_cannot_be_evaluated_is_refused_before_anything_is_computed(tmp_path, evaluated):
    with pytest.raises(UserError, match="There is no task set 'poetry'"):
        evaluate(EvaluateConfig(tasks=("poetry",)), evaluated, make_context(tmp_path))
    with pytest.raises(UserError, match="nothing to evaluate.*Fix: give a checkpoint, or an `endpoint`"):
        evaluate(EvaluateConfig(n=1), {name: evaluated[name] for name in ("tasks", "graders")}, make_context(tmp_path))


def test_bits_per_byte_of_a_text_file(tmp_path, evaluated):
    file = tmp_path / "notes.txt"
    file.write_text("One lamp costs seven coins: ü. " * 60, encoding="utf-8")

    class Given:
        path = file

    context = make_context(tmp_path / "run")
    config = EvaluateConfig(tasks=("format",), n=1, max_new_tokens=2)
    evaluate(config, {**evaluated, "text": Given()}, context)
    row = next(row for row in summary_of(context) if row["metric"] == "bits_per_byte")
    assert row["task"] == "notes.txt" and row["low"] <= row["value"] <= row["high"]
    windows = read_jsonl(context.out / "bpb.jsonl")
    size = len(file.read_bytes())
    assert row["value"] == pytest.approx(sum(window["bits"] for window in windows) / size, rel=1e-3)
    assert sum(window["bytes"] for window in windows) == pytest.approx(size, abs=len(windows))


def test_the_directory_of_a_result_is_enough_to_get_every_number_again(tmp_path, evaluated):
    file = tmp_path / "notes.txt"
    file.write_text("Two lamps cost nine coins. " * 60, encoding="utf-8")
    context = make_context(tmp_path / "run", seed=7)
    config = EvaluateConfig(n=5, samples=3, max_new_tokens=6)
    evaluate(config, {**evaluated, "text": SimpleNamespace(path=file)}, context)
    # From here on only what the stage wrote.
    items, windows = (read_jsonl(context.out / name) for name in ("items.jsonl", "bpb.jsonl"))
    summary = read_json(context.out / "summary.json")
    rows = summary["evaluations"]
    names, seeds = {row["checkpoint"] for row in rows}, {row["seed"] for row in rows}
    assert len(names) == len(seeds) == 1
    (name,), (seed,) = names, seeds
    modes = list(dict.fromkeys(row["mode"] for row in items))
    scores = [row for row in rows if row["metric"] != METRIC]
    assert summarize(name, items, modes, seed) == scores and len(scores) > 20
    (bits,) = (row for row in rows if row["metric"] == METRIC)
    found = bits_per_byte(windows, seed)
    assert (bits["value"], bits["low"], bits["high"]) == tuple(
        round(x, 6) for x in (found.value, found.low, found.high)
    )
    assert bits["n"] == found.n == len(windows) and bits["ungradable"] == 0
    assert context.metrics.values["headline"] == headline(rows)


def test_an_endpoint_is_evaluated_like_a_checkpoint(tmp_path, evaluated, monkeypatch):
    answers = {row["messages"][-1]["content"]: row["answer"] for row in read_jsonl(evaluated["tasks"] / "dev.jsonl")}

    def handle(request):
        assert request.headers["authorization"] == "Bearer secret"
        body = json.loads(request.content)
        message = {"role": "assistant", "content": answers[body["messages"][-1]["content"]]}
        choices = [{"index": n, "message": message, "finish_reason": "stop"} for n in range(body["n"])]
        return httpx.Response(200, json={"choices": choices})

    monkeypatch.setattr(
        module, "OpenAIEngine", lambda *a, **b: OpenAIEngine(*a, **b, transport=httpx.MockTransport(handle))
    )
    given = {name: evaluated[name] for name in ("tasks", "graders")}
    endpoint = {"url": "http://server/v1", "model": "big", "key_env": "SOME_KEY"}
    config = EvaluateConfig.model_validate({"tasks": ("arithmetic",), "parts": ("dev",), "n": 3, "endpoint": endpoint})
    with pytest.raises(UserError, match="key_env names SOME_KEY, which is not set"):
        evaluate(config, given, make_context(tmp_path / "a"))
    monkeypatch.setenv("SOME_KEY", "secret")
    context = make_context(tmp_path / "b")
    evaluate(config, given, context)
    rows = summary_of(context)
    assert {row["checkpoint"] for row in rows} == {"big"} and {row["value"] for row in rows} == {1.0}
    assert all(row["tokens"] is None for row in read_jsonl(context.out / "items.jsonl"))
