"""Estimates against measured memory of fresh processes, and against exact counts."""

import json
import subprocess
import sys

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.plan.estimate import PROCESS_BYTES, Work, estimate, sizes_of
from loopline.plan.laws import shape
from tests.model.families import FAMILIES, OTHERS

FACTOR = 1.6
MEASURE = """
import json, sys
import loopline, torch
torch.set_num_threads(1)
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.decoder import Decoder
from loopline.plan.laws import shape
from loopline.training.batch import Example, build_batch
from loopline.training.objectives import NextToken

kind, width, layers, vocab, rows, length = sys.argv[1], *map(int, sys.argv[2:])
model = Decoder(shape(width, layers, vocab, length)).initialize(torch.Generator().manual_seed(0))
if kind == "train":
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        ids = torch.randint(0, vocab, (rows, length)).tolist()
        batch = build_batch([[Example(row, [1.0] * length)] for row in ids])
        total, weight, _ = NextToken().loss(model, batch)
        (total / weight).backward()
        optimizer.step()
        optimizer.zero_grad()
else:
    half = length // 2
    prompts = [list(range(3, 3 + half))] * rows
    TorchEngine(model.eval(), None).generate(prompts, Sampling(max_new_tokens=half, stop_token_ids=(1,)))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps(int(peak.split()[1]) * 1024))
"""


@pytest.mark.parametrize(
    ("kind", "width", "layers", "vocab", "rows", "length"),
    [("train", 64, 2, 512, 2, 64), ("train", 256, 4, 8192, 4, 256), ("train", 512, 5, 4096, 2, 128),
     ("sample", 256, 8, 8192, 16, 128)],
)  # fmt: skip
def test_peak_memory_is_within_the_stated_factor_of_what_is_measured(kind, width, layers, vocab, rows, length):
    arguments = [kind, *map(str, (width, layers, vocab, rows, length))]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    found = estimate(shape(width, layers, vocab, length), [Work(kind, rows, length)]).peak_bytes
    assert 1 / FACTOR < found / measured < FACTOR


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_sizes_of_any_architecture(family):
    config = {**FAMILIES, **OTHERS}[family]()
    exact = transformers.AutoModelForCausalLM.from_config(config).num_parameters()
    found = sizes_of(json.loads(config.to_json_string(use_diff=False)))
    assert found.own == (family in FAMILIES)
    assert found.parameters == pytest.approx(exact, rel=1e-9 if found.own else 0.5)


works = st.builds(
    Work,
    st.sampled_from(["train", "sample", "score"]),
    rows=st.integers(1, 64),
    length=st.integers(16, 2048),
    tokens=st.floats(1, 1e9),
    adapter_rank=st.none() | st.integers(1, 64),
)


@given(works, works)
@settings(max_examples=50)
def test_more_work_never_needs_less(one, other):
    model = shape(256, 8, 4096, 2048)
    alone, both = estimate(model, [one], 1e11), estimate(model, [one, other], 1e11)
    assert both.peak_bytes > alone.peak_bytes > PROCESS_BYTES
    assert both.disk_bytes >= alone.disk_bytes >= 4 * model.parameters()
    assert both.seconds > alone.seconds > 0
    larger = estimate(shape(512, 8, 4096, 2048), [one], 1e11)
    assert larger.peak_bytes > alone.peak_bytes and larger.seconds > alone.seconds


def test_an_adapter_trains_in_less_memory_and_time_is_asked_for():
    model = shape(512, 12, 4096, 2048)
    whole, thin = (estimate(model, [Work("train", 1, 64, 1e6, adapter_rank=rank)], 1e11) for rank in (None, 8))
    assert thin.peak_bytes < whole.peak_bytes and thin.seconds < whole.seconds
    assert estimate(model, [Work("train", 1, 64, 1e6)]).seconds is None
    assert whole.seconds == pytest.approx(6 * model.parameters() * 1e6 / 1e11)
