"""What a line will need: estimates follow the settings, and what cannot fit is refused with its place and fix."""

import pytest

from loopline.base.errors import UserError
from loopline.base.files import write_json
from loopline.needs import needs, refuse_what_cannot_fit
from loopline.pipeline import run_line
from loopline.recipe import find_recipe, load_recipe, parse_recipe
from tests.support_line import TRAINING_KINDS

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32_000, "hidden_size": 1024,
    "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture
def line(tmp_path):
    write_json(tmp_path / "model" / "config.json", CONFIG)
    (tmp_path / "rows.jsonl").touch()

    def resolved(memory=None, **settings):
        raw = {
            "start": {"model": "model"},
            "compute": {"memory_gb": memory},
            "line": [{"sft": {"data": "rows.jsonl", **settings}}, "quantize"],
        }
        return parse_recipe(raw, "r.yaml", folder=tmp_path)

    return resolved


def need(recipe, speed=None):
    return {item.node: item for item in needs(recipe, speed)}["sft"]


def test_memory_follows_batch_length_and_adapter(line):
    whole = need(line())
    assert need(line(rows_per_batch=2)).peak_bytes < whole.peak_bytes
    assert need(line(sequence_length=256)).peak_bytes < whole.peak_bytes
    assert need(line(adapter={"rank": 8})).peak_bytes < whole.peak_bytes
    # Weights, gradients and two moments of some 330 million parameters are the least.
    assert whole.peak_bytes > 4 * 4 * 300e6


def test_time_follows_steps_and_speed(line):
    assert need(line(steps=20), 1e11).seconds == pytest.approx(2 * need(line(steps=10), 1e11).seconds)
    assert need(line(steps=20), 1e12).seconds == pytest.approx(need(line(steps=20), 1e11).seconds / 10)
    assert need(line()).seconds is None


def test_what_cannot_fit_is_refused_before_anything_runs(line, tmp_path):
    recipe = line(memory=2)
    with pytest.raises(UserError, match=r"r.yaml: sft would need about \d+\.\d GB of memory, and there are 2.0. Fix: "):
        refuse_what_cannot_fit(recipe)
    with pytest.raises(UserError, match="compute.memory_gb"):
        run_line(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "store").exists()
    refuse_what_cannot_fit(line(memory=200))


def test_a_line_that_pretrains_is_estimated_from_its_budget():
    found = {item.node: item for item in needs(load_recipe(find_recipe("laptop")), 1e11)}
    assert found["sft"].peak_bytes > 0 and found["student_base"].disk_bytes < found["pretrain"].disk_bytes
    assert found["tasks"].peak_bytes is None


def test_a_kind_of_another_package_is_not_taken_for_ours_of_the_same_name():
    raw = {"line": ["numbers", {"pretrain": {"steps": 4}}, {"sft": {"steps": 4}}]}
    line = parse_recipe(raw, "r.yaml", kinds=TRAINING_KINDS)
    assert [item.peak_bytes for item in needs(line)] == [None, None, None]
    refuse_what_cannot_fit(line)
