"""Recipes of other shapes than the shipped ones, each on another architecture, on tiny random models."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from loopline.base.files import read_json, read_jsonl
from loopline.pipeline import run_line, status
from loopline.recipe import load_recipe, parse_recipe
from loopline.results import read_scores
from tests.support_stock import stock_checkpoint, write_rows

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": None,
}
ARCHITECTURES = {
    "llama": lambda **sizes: transformers.LlamaConfig(**sizes),
    "qwen3": lambda **sizes: transformers.Qwen3Config(**sizes),
    "gemma3": lambda **sizes: transformers.Gemma3TextConfig(**sizes, sliding_window=32),
    "mistral": lambda **sizes: transformers.MistralConfig(**sizes, sliding_window=24),
    "qwen3_moe": lambda **sizes: transformers.Qwen3MoeConfig(
        **sizes, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return stock_checkpoint(tmp_path_factory.mktemp("stock"))


@pytest.fixture(autouse=True)
def _as_before():
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


def checkpoint(name, tokenizer, path):
    """A tiny random model of the architecture with the stock tokenizer."""
    found = transformers.AutoTokenizer.from_pretrained(tokenizer)
    ids = {"vocab_size": len(found), "eos_token_id": found.eos_token_id, "pad_token_id": found.pad_token_id}
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[name](**SIZES, **ids))
    model.save_pretrained(path)
    found.save_pretrained(path)
    return path


def sums(path):
    """Prompts with answers, and chats that answer some."""
    rows = [{"prompt": f"{a}+{b}?", "answer": str(a + b)} for a in range(8) for b in range(8)]
    write_rows(path / "sums.jsonl", rows)
    chats = [{"messages": [{"role": "user", "content": f"{n}+9?"}, {"role": "assistant", "content": str(n + 9)}]}
             for n in range(12)]  # fmt: skip
    write_rows(path / "chats.jsonl", chats)
    sets = {"sums": {"file": "sums.jsonl", "grader": "final_answer", "heldout": 0.3, "dev": 0.3, "tags": ["reasoning"]}}
    evaluate = {"after": "all", "modes": ["greedy"], "max_new_tokens": 4}
    return {
        "tasks": sets,
        "graders": {"probe": {"prompts": 0}},
        "evaluate": evaluate,
        "compute": {"threads": 1},
    }


def run(name, tokenizer, tmp_path, line, **sections):
    model = checkpoint(name, tokenizer, tmp_path / "model")
    raw = {**sums(tmp_path), "start": {"model": str(model)}, "line": line, **sections}
    recipe = parse_recipe(raw, "shape.yaml", folder=tmp_path)
    return run_line(recipe, tmp_path / "run")


SFT = {"sft": {"data": "chats.jsonl", "steps": 2, "batch_size": 4}}


def test_an_evaluation_alone_on_llama(tokenizer, tmp_path):
    done = run("llama", tokenizer, tmp_path, [])
    assert list(done) == ["start", "tasks", "graders", "evaluate_start"]
    assert {row["part"] for row in read_jsonl(done["evaluate_start"] / "items.jsonl")} == {"dev", "heldout"}


def test_fine_tuning_then_an_evaluation_on_gemma(tokenizer, tmp_path):
    done = run("gemma3", tokenizer, tmp_path, [SFT])
    before, after = (load_file(done[name] / "model.safetensors") for name in ("start", "sft"))
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)
    assert {row["node"] for row in read_scores(tmp_path / "run")} == {"start", "sft"}


def test_two_branches_are_released_against_each_other_on_mistral(tokenizer, tmp_path):
    line = [{**SFT, "name": "a"}, {"sft": {**SFT["sft"], "optimizer": {"learning_rate": 1e-3}}, "name": "b",
            "from": "start"}, {"release": {"latency_prompts": 0}, "from": ["a", "b"]}]  # fmt: skip
    done = run("mistral", tokenizer, tmp_path, line)
    decision = read_json(done["release"] / "release.json")
    assert decision["champion"] in ("a", "b") and {row["name"] for row in decision["candidates"]} == {"a", "b"}
    chosen = done[decision["champion"]] / "model.safetensors"
    assert (done["release"] / "model" / "model.safetensors").read_bytes() == chosen.read_bytes()


def test_what_is_repeated_twice_starts_from_itself_on_a_mixture_of_experts(tokenizer, tmp_path):
    grpo = {"steps": 1, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 4}
    line = [{"repeat": {"times": 2, "line": [SFT, {"grpo": grpo}]}}]
    done = run("qwen3_moe", tokenizer, tmp_path, line, evaluate={"after": ["sft"], "modes": ["greedy"]})
    rows = {row.name: row for row in status(tmp_path / "run")}
    assert rows["sft_2"].inputs["policy"] == "grpo_1" and rows["grpo_2"].inputs["policy"] == "sft_2"
    assert {"evaluate_sft_1", "evaluate_sft_2"} <= set(done) and done["sft_1"].digest != done["sft_2"].digest


def test_pretraining_with_one_more_node(tmp_path):
    text = "A line of plain words that a small model may learn to write. "
    for number in range(40):
        (tmp_path / "notes").mkdir(exist_ok=True)
        words = " ".join(f"word{(number * 7 + k) % 50} and then some more text follows here" for k in range(30))
        (tmp_path / "notes" / f"{number}.txt").write_text(f"Note {number}. {text}{words}\n")
    raw = {
        "compute": {"threads": 1},
        "tasks": {"sums": {"generator": "arithmetic", "sizes": {"train": 60, "dev": 10, "heldout": 10}}},
        "line": [
            {"raw": {"python": None, "sources": [{"name": "notes", "path": str(tmp_path / "notes")}],
                     "synthetic": {"documents": {"arithmetic": 60_000, "word_problem": 0, "ordering": 0, "code": 0,
                                                 "safety": 0, "lookup": 0}}}},
            {"data": {"tokenizer": {"vocab_size": 268}, "synthetic_share": 0.8}},
            {"plan": {"budget": {"flops": 2.0e10}, "over_training": 0.2, "sequence_length": 64, "batch_tokens": 256,
                      "min_steps": 2}},
            "pretrain",
            {"quantize": {}},
        ],
    }  # fmt: skip
    done = run_line(parse_recipe(raw, "shape.yaml", folder=tmp_path), tmp_path / "run")
    assert done["quantize"].meta["metrics"]["bytes_after"] < done["quantize"].meta["metrics"]["bytes_before"]


def test_a_task_set_and_grader_of_ones_own_go_through_release_and_traffic_loop(tokenizer, tmp_path):
    folder = Path(__file__).parents[1] / "examples" / "own_tasks"
    model = checkpoint("qwen3", tokenizer, tmp_path / "model")
    recipe = load_recipe(folder / "recipe.yaml", [f"start.model={model}", "compute.threads=1"])
    done = run_line(recipe, tmp_path / "run")
    assert read_json(done["graders"] / "audit.json")["colours"]["passed"]
    assert read_json(done["gate"] / "decision.json")["decision"] in ("keep", "promote")
    assert all(row["grader"] == "colours" for row in read_jsonl(done["tasks"] / "train.jsonl"))
