"""The commands end to end: a stock checkpoint, GSM8K, a few steps; again, changed, killed, and wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loopline import cli
from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl
from loopline.eval_recipe import EvalRequest, eval_recipe
from loopline.pipeline import run_line
from loopline.results import read_scores
from loopline.short_recipes import Request, parse_columns, recipe_of, run_command
from loopline.store.store import Store
from tests.support_stock import stock_checkpoint, write_rows

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
needs_gsm8k = pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not here")
SFT = ("steps=3", "batch_size=4", "overlong=drop", "runtime.save_every=1", "read.limit=30")
VOWEL = """
def grade(sample, item):
    return float(sum(letter in "aeiou" for letter in sample["output_text"]) > 5)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return stock_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _as_before():
    """A run sets the threads and the determinism of its process."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """The shortest questions of GSM8K, so that tiny positions suffice."""
    if not GSM8K.exists():
        pytest.skip("GSM8K is not here")
    rows = sorted(read_jsonl(GSM8K)[:300], key=lambda row: len(row["question"]))[:24]
    return write_rows(tmp_path_factory.mktemp("data") / "gsm8k.jsonl", rows)


def tune(command, model, data, out, *overrides, **options):
    said = []
    request = Request(command, str(model), out, str(data), overrides=overrides, threads=1, **options)
    return run_command(request, say=said.append), said


def loads(path):
    """The result loads with `transformers`, and with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(path)
    ids = AutoTokenizer.from_pretrained(path).apply_chat_template([{"role": "user", "content": "2+2?"}])
    return loaded, ids


def ran(result):
    return {node["name"]: node["ran"] for node in result["nodes"]}


@needs_gsm8k
def test_sft_runs_once_says_why_it_runs_again_and_loads(model, tmp_path):
    first, said = tune("sft", model, GSM8K, tmp_path, *SFT, columns="prompt=question,completion=answer")
    assert ran(first) == {"start": True, "sft": True} and said[0] == "[1/2] start"
    assert loads(tmp_path / "model")[1]
    assert [row["step"] for row in read_jsonl(tmp_path / "model/log/metrics.jsonl")] == [0, 1, 2]
    read = read_json(tmp_path / "model/training.json")["sources"]["data"]
    assert read["too long"] and read["rows"] + read["too long"] == 30

    again, said = tune("sft", model, GSM8K, tmp_path, *SFT, columns="prompt=question,completion=answer")
    assert ran(again) == {"start": False, "sft": False} and again["artifact"] == first["artifact"]
    assert said == [f"Nothing to do: everything is there already. Result: {tmp_path / 'model'}"]

    changed = [word.replace("steps=3", "steps=2") for word in SFT]
    third, said = tune("sft", model, GSM8K, tmp_path, *changed, columns="prompt=question,completion=answer")
    assert ran(third) == {"start": False, "sft": True} and said[0] == "[2/2] sft: sft.steps changed from 3 to 2"
    assert (tmp_path / "model").resolve() == tmp_path / third["artifact"] != tmp_path / first["artifact"]
    # A result is a model for the next command, by its --out.
    fourth, _ = tune("sft", tmp_path, GSM8K, tmp_path / "more", *SFT, columns="prompt=question,completion=answer")
    assert ran(fourth)["sft"]


@needs_gsm8k
def test_an_adapter_is_trained_alone_and_saved_for_peft_and_merged(model, tmp_path):
    pytest.importorskip("peft")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    words = (*SFT, "adapter.rank=4", "optimizer.learning_rate=0.01")
    done, _ = tune("sft", model, GSM8K, tmp_path, *words, columns="prompt=question,completion=answer")
    assert ran(done)["sft"]
    base = AutoModelForCausalLM.from_pretrained(model)
    merged = loads(tmp_path / "model")[0]
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        before, after = base(ids).logits, merged(ids).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "model" / "adapter")(ids).logits
    assert float((after - before).abs().max()) > 1e-3
    torch.testing.assert_close(adapted, after, atol=1e-4, rtol=1e-4)
    for name, tensor in AutoModelForCausalLM.from_pretrained(model).state_dict().items():
        if "_proj" not in name:
            assert torch.equal(tensor, merged.state_dict()[name]), f"{name} is no linear layer and was trained"


@needs_gsm8k
def test_grpo_audits_tries_out_runs_and_explains_itself(model, questions, tmp_path, capsys):
    settings = ("steps=2", "max_new_tokens=24", "prompts_per_step=2", "group_size=4")
    done, _ = tune("grpo", model, questions, tmp_path, *settings, columns="prompt=question", grader="gsm8k")
    assert ran(done) == dict.fromkeys(["start", "tasks", "graders", "grpo"], True)
    assert "answers tried" in capsys.readouterr().err
    audit = read_json(Store(tmp_path).artifacts("graders")[0] / "audit.json")
    assert audit["gsm8k"]["passed"] and "forced" not in audit["gsm8k"]
    reasons = (tmp_path / "model/log/why.txt").read_text().splitlines()
    assert len(reasons) == 2 and "nothing to learn" in reasons[0]
    assert len(read_jsonl(tmp_path / "model/rollouts.jsonl")) == 4
    loads(tmp_path / "model")
    again, said = tune("grpo", model, questions, tmp_path, *settings, columns="prompt=question", grader="gsm8k")
    assert not any(ran(again).values())


@needs_gsm8k
def test_grpo_samples_from_an_adapter_and_saves_it(model, questions, tmp_path):
    peft = pytest.importorskip("peft")
    settings = ("steps=2", "max_new_tokens=24", "prompts_per_step=2", "group_size=4", "adapter.rank=4")
    done, _ = tune("grpo", model, questions, tmp_path, *settings, columns="prompt=question", grader="gsm8k")
    assert ran(done)["grpo"]
    base, after = loads(model)[0], loads(tmp_path / "model")[0]
    # Nothing was earned, so what is merged is still the base.
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in after.state_dict().items())
    assert peft.PeftModel.from_pretrained(base, tmp_path / "model" / "adapter").peft_config["default"].r == 4
    assert "mismatch" in (tmp_path / "model/log/why.txt").read_text()


@needs_gsm8k
def test_a_grader_that_pays_for_junk_is_refused_unless_forced(model, questions, tmp_path, capsys):
    grader = tmp_path / "vowels.py"
    grader.write_text(VOWEL)
    settings = ("steps=1", "max_new_tokens=60", "prompts_per_step=2", "group_size=4", "probe=1")
    options = {"columns": "prompt=question", "grader": str(grader)}
    with pytest.raises(UserError, match=r"unknown key grpo\.probe"):
        tune("grpo", model, questions, tmp_path / "out", *settings, **options)
    settings = settings[:-1]
    with pytest.raises(UserError, match=r"fails its audit.*copied_prompt pays.*--force-grader"):
        tune("grpo", model, questions, tmp_path / "out", *settings, **options)
    assert not (tmp_path / "out/store/grpo").exists()
    done, _ = tune("grpo", model, questions, tmp_path / "out", *settings, force_grader=True, **options)
    assert ran(done)["grpo"] and "Going on, as --force-grader says" in capsys.readouterr().err
    audit = read_json(Store(tmp_path / "out").artifacts("graders")[0] / "audit.json")["prompts"]
    assert audit["forced"] and not audit["passed"]


@needs_gsm8k
def test_a_grader_that_always_fails_is_refused_before_training(model, questions, tmp_path):
    grader = tmp_path / "broken.py"
    grader.write_text("def grade(sample, item):\n    return item['no_such_column']\n")
    with pytest.raises(
        UserError, match=r"The grader 'prompts' failed on every one of .* reference answers.*no_such_column"
    ):
        tune("grpo", model, questions, tmp_path / "out", columns="prompt=question", grader=str(grader))
    assert not (tmp_path / "out/store/graders").exists()


@needs_gsm8k
def test_reject_iterates_and_keeps_held_out_questions_away(model, questions, tmp_path):
    grader = tmp_path / "vowels.py"
    grader.write_text(VOWEL)
    held = write_rows(tmp_path / "held.jsonl", read_jsonl(questions)[:6])
    settings = ("steps=1", "samples=4", "max_new_tokens=100", "minimum=2", "similarity=1.0")
    options = {"columns": "prompt=question", "grader": str(grader), "force_grader": True, "heldout": str(held)}
    done, _ = tune("reject", model, questions, tmp_path / "out", *settings, rounds=2, **options)
    assert list(ran(done)) == ["start", "tasks", "graders", "reject_1", "reject_2"]
    facts = read_json(tmp_path / "out/model/accepted.json")
    assert facts["prompts"] == 18
    assert read_json(Store(tmp_path / "out").artifacts("tasks")[0] / "sets.json")["prompts"]["left_out"] == 6
    loads(tmp_path / "out/model")
    # A third round needs nothing but itself.
    more, _ = tune("reject", model, questions, tmp_path / "out", *settings, rounds=3, **options)
    assert [name for name, did in ran(more).items() if did] == ["reject_3"]


COMMAND = """
import sys
from loopline.cli import main
import loopline.training.sources as sources
import time
walk = sources.SetSource.next
def slowly(self, step):
    time.sleep(0.15)
    return walk(self, step)
sources.SetSource.next = slowly
sys.argv = ["loopline", *sys.argv[1:]]
main()
"""


@needs_gsm8k
def test_a_killed_command_goes_on_and_ends_in_the_same_bytes(model, questions, tmp_path):
    settings = ("steps=12", *SFT[1:])
    columns = "prompt=question,completion=answer"
    words = ["sft", "--model", model, "--data", questions, "--out", tmp_path / "killed", "--columns", columns]
    words += ["--threads", 1, *(word for setting in settings for word in ("--set", setting))]
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    undisturbed, _ = tune("sft", model, questions, tmp_path / "undisturbed", *settings, columns=columns)
    deadline = time.monotonic() + 90
    while not list((tmp_path / "killed").glob("work/sft-*/state/*")):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    # A second process on the same directory is turned away while the first one lives.
    with pytest.raises(UserError, match=rf"in use by process {killed.pid} .*--out"):
        tune("sft", model, questions, tmp_path / "killed", *settings, columns=columns)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "model").exists()
    resumed, said = tune("sft", model, questions, tmp_path / "killed", *settings, columns=columns)
    assert said[0] == "[2/2] sft: an earlier attempt did not finish" and ran(resumed) == {"start": False, "sft": True}
    digests = [Store(tmp_path / name).artifacts("sft")[0].digest for name in ("undisturbed", "killed")]
    assert digests[0] == digests[1]
    assert [row["step"] for row in read_jsonl(tmp_path / "killed/model/log/metrics.jsonl")] == list(range(12))


def test_mistakes_are_told_before_anything_is_computed(model, tmp_path, monkeypatch, capsys):
    rows = [{"question": f"{n}+1?", "answer": str(n + 1)} for n in range(4)]
    data = write_rows(tmp_path / "mine.jsonl", rows)
    good = Request(
        "sft", str(model), tmp_path / "out", str(data), columns="prompt=question,completion=answer", threads=1
    )

    def refused(match, request):
        with pytest.raises(UserError, match=match) as caught:
            run_command(request)
        assert "Fix: " in str(caught.value) and "\n" not in str(caught.value)

    refused(r"columns question, answer, .*--columns prompt=question,completion=answer", replace(good, columns=""))
    refused(r"qwen/none, and there is no such.*download", replace(good, model="qwen/none"))
    refused(r"none.jsonl, and there is no such file", replace(good, data=str(tmp_path / "none.jsonl")))
    refused(r"unknown key sft\.stpes.*did you mean 'steps'", replace(good, overrides=["stpes=3"]))
    refused(r"unknown key sft\.read\.limt", replace(good, overrides=["read.limt=3"]))
    refused(r"4 of 4 rows are longer than the 16 tokens that sequence_length allows.*sequence_length=\d+",
            replace(good, overrides=["sequence_length=16"]))  # fmt: skip
    refused(r"--columns question: not of the form", replace(good, columns="question"))
    bare = tmp_path / "bare"
    bare.mkdir()
    refused(r"has no config\.json", replace(good, model=str(bare)))
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    refused(r"has no tokenizer", replace(good, model=str(bare)))
    (bare / "model.safetensors").unlink()
    refused(r"has no weights", replace(good, model=str(bare)))
    empty = write_rows(tmp_path / "empty.jsonl", [*rows, {"question": "2?", "answer": " "}])
    refused(r"empty\.jsonl: 1 of 5 rows have an empty completion \(row 5\)", replace(good, data=str(empty)))
    assert not list((tmp_path / "out").glob("store/sft*"))
    monkeypatch.setattr(sys, "argv", ["loopline", "sft", "--model", str(bare), "--data", str(data), "--out", "x"])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code == 2
    assert capsys.readouterr().err.startswith("loopline: ")


def test_the_command_prints_json(model, tmp_path, monkeypatch, capsys):
    data = write_rows(tmp_path / "mine.jsonl", [{"prompt": f"{n}+1?", "completion": str(n + 1)} for n in range(4)])
    words = ["sft", "--model", model, "--data", data, "--out", tmp_path / "out", "--set", "steps=1", "--json"]
    monkeypatch.setattr(sys, "argv", ["loopline", *map(str, words), "--threads", "1"])
    monkeypatch.setattr("loopline.pipeline.stop_on_signals", lambda: None)
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert not ending.value.code
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == str(tmp_path / "out/model") and result["metrics"]["rows"] == 4


def test_a_command_is_a_recipe_of_one_node(model, tmp_path):
    data = str(write_rows(tmp_path / "mine.jsonl", [{"prompt": "1+1?", "answer": "2"}]))
    for command, names in {
        "sft": ["start", "sft"],
        "reward": ["start", "reward"],
        "dpo": ["start", "preference"],
        "grpo": ["start", "tasks", "graders", "grpo"],
        "reject": ["start", "tasks", "graders", "reject"],
        "align": ["start", "tasks", "graders", "align"],
        "quantize": ["start", "quantize"],
    }.items():
        recipe = recipe_of(Request(command, str(model), tmp_path, data))
        assert [node.name for node in recipe.nodes] == names
    reject = recipe_of(Request("reject", str(model), tmp_path, data, rounds=3, overrides=["tasks.limit=5"]))
    assert [node.inputs["policy"] for node in reject.nodes[-3:]] == ["start", "reject_1", "reject_2"]
    assert reject.node("tasks").settings.sets["prompts"].limit == 5
    with pytest.raises(UserError, match="`loopline sft` needs --data"):
        recipe_of(Request("sft", str(model), tmp_path))


def test_eval_asks_every_row_and_keeps_every_outcome(model, tmp_path):
    data = write_rows(tmp_path / "sums.jsonl", [{"prompt": f"{n}+1?", "answer": str(n + 1)} for n in range(5)])
    (tmp_path / "note.txt").write_text("Plain text, to be predicted. " * 30)
    request = EvalRequest(str(model), [str(data)], tmp_path / "out", text=str(tmp_path / "note.txt"), threads=1)
    request = replace(request, grader="final_answer", overrides=["max_new_tokens=4", "modes=[sampled]", "samples=3"])
    done = run_line(eval_recipe(request), tmp_path / "out")
    items = read_jsonl(done["evaluate"] / "items.jsonl")
    assert len(items) == 15 and {row["task_set"] for row in items} == {"sums"}
    rows = {(row["task"], row["metric"]): row for row in read_scores(tmp_path / "out")}
    assert rows["sums", "sampled pass@1"]["n"] == 5 and ("sums", "sampled pass@3") in rows
    assert any(metric == "bits_per_byte" for _, metric in rows)


def test_what_is_evaluated_on_may_be_named_in_several_ways(tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [{"prompt": "1+1?", "answer": "2"}])
    (tmp_path / "sets.yaml").write_text("tasks:\n  b: {heldout: a.jsonl, tags: [reasoning]}\n")
    endpoint = EvalRequest("http://127.0.0.1:9/v1", [], tmp_path / "out", endpoint_model="m")
    words = [str(data), f"c={data}", str(tmp_path / "sets.yaml"), "arithmetic", "reasoning_gym:chain_sum"]
    recipe = eval_recipe(replace(endpoint, tasks=words))
    assert list(recipe.node("tasks").settings.sets) == ["a", "c", "b", "arithmetic", "chain_sum"]
    assert [node.name for node in recipe.nodes] == ["tasks", "graders", "evaluate"]
    for tasks, message in (
        ([], "Nothing is asked"),
        (["none.jsonl"], "there is no file none.jsonl"),
        ([str(data), str(data)], "there are two task sets called a"),
    ):
        with pytest.raises(UserError, match=message):
            eval_recipe(replace(endpoint, tasks=tasks))
    with pytest.raises(UserError, match="is an endpoint, and --name is missing"):
        eval_recipe(replace(endpoint, tasks=words, endpoint_model=None))


def test_columns_are_read_as_written():
    assert parse_columns(" prompt=question , completion=a=b") == {"prompt": "question", "completion": "a=b"}
    assert parse_columns("") == {}
