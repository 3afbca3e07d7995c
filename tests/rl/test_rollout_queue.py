"""Collecting ahead: which weights sample what, in which process, and that a resumed run has the same rollouts."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl
from loopline.inference.fingerprint import fingerprint
from loopline.rl.collect import Memory, pack_rollout
from loopline.rl.rollout import gather_trained
from loopline.rl.rollout_config import RolloutConfig, RolloutRuntime
from loopline.rl.rollout_queue import LocalWorker, ProcessWorker, RolloutQueue, load_checked
from tests.rl.support import CONFIG, Plan, make_collector, make_source, policy
from tests.support_model import tiny_tokenizer


def aged(staleness, background="off"):
    return RolloutConfig(staleness=staleness, runtime=RolloutRuntime(background=background))


def nudge(model, step):
    """An update that depends on the step alone."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def timeless(rollout):
    row = pack_rollout(rollout)
    del row["seconds"]
    return row


def run(queue, model, numbers):
    """Rollouts taken while the model is trained between them."""
    taken = []
    for number in numbers:
        taken.append(timeless(queue.take(number, number)))
        nudge(model, number)
    return taken


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_a_rollout_is_collected_with_the_weights_of_so_many_rollouts_before(tokenizer, graders, staleness):
    model = policy()
    taken = run(RolloutQueue(make_collector(tokenizer, graders, model), staleness), model, range(5))
    assert [row["version"] for row in taken] == [max(0, number - staleness) for number in range(5)]
    for row in taken:
        fresh = policy()
        for step in range(row["version"]):
            nudge(fresh, step)
        memory = Memory(row["number"], row["number"], row["number"] * CONFIG.prompts_per_step)
        again, _ = make_collector(tokenizer, graders, fresh).collect(row["number"], row["version"], memory)
        assert timeless(again) == row
        # Collector and trainer agree at the weights that sampled, however old they are.
        assert row["mismatch"]["tokens"] > 0 and row["mismatch"]["largest"] < 1e-4


def test_in_the_background_or_not_the_samples_are_the_same(tmp_path, graders):
    tokenizer = tiny_tokenizer(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    try:
        for background in ("off", "thread", "process"):
            model = policy()
            collector = make_collector(tokenizer, graders, model, rollout=aged(1, background))
            worker = ProcessWorker(Plan(tmp_path, aged(1, background)).make, 1) if background == "process" else None
            queue = RolloutQueue(collector, 1, background, worker)
            found[background] = run(queue, model, range(3))
            queue.close()
    finally:
        torch.set_num_threads(threads)
    assert found["off"] == found["thread"] == found["process"]


def test_sampling_and_training_happen_at_the_same_time(tokenizer, graders):
    model = policy()
    collector = make_collector(tokenizer, graders, model)
    plain = LocalWorker(collector)
    spans = []

    class Watched:
        def collect(self, *arguments):
            began = time.monotonic()
            time.sleep(0.15)
            drawn = plain.collect(*arguments)
            spans.append((began, time.monotonic()))
            return drawn

        def close(self):
            pass

    queue = RolloutQueue(collector, 1, "thread", Watched())
    trained = []
    for number in range(3):
        queue.take(number, number)
        began = time.monotonic()
        time.sleep(0.15)
        nudge(model, number)
        trained.append((began, time.monotonic()))
    queue.close()
    for number in (0, 1):
        (a, b), (c, d) = trained[number], spans[number + 1]
        assert min(b, d) - max(a, c) > 0.1, "the next rollout waited for training"


def test_training_does_not_reach_the_copy_that_samples(tokenizer, graders):
    model = policy()
    worker = LocalWorker(make_collector(tokenizer, graders, model))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before, _ = worker.collect(weights, 0, 0, Memory())
    nudge(model, 0)
    after, _ = worker.collect(weights, 0, 0, Memory())
    assert timeless(before) == timeless(after)


def test_a_sync_that_did_not_happen_is_an_error(tokenizer, graders):
    model = policy()
    worker = LocalWorker(make_collector(tokenizer, graders, model))
    nudge(model, 0)
    weights = model.state_dict()
    worker.collect(weights, 0, 1, Memory())
    assert fingerprint(worker.collector.engine.model.state_dict()) == fingerprint(weights)
    worker.collector.engine.load = lambda *arguments: None
    worker.collect(weights, 0, 1, Memory())  # Nothing moved, so nothing is missing.
    nudge(model, 1)
    with pytest.raises(UserError, match="does not have version 2 of the weights"):
        worker.collect(model.state_dict(), 1, 2, Memory())
    with pytest.raises(UserError, match="fingerprint"):
        load_checked(worker.collector, weights, 1, "0" * 32)


def test_one_bit_changes_the_fingerprint():
    state = policy().state_dict()
    before = fingerprint(state)
    assert fingerprint(dict(reversed(state.items()))) == before
    state["norm.weight"].view(torch.int32)[3] ^= 1
    assert fingerprint(state) != before


@pytest.mark.parametrize("background", ["off", "thread"])
@pytest.mark.parametrize(("staleness", "updates"), [(0, 1), (1, 1), (2, 1), (0, 2), (1, 3)])
def test_a_resumed_source_trains_on_the_very_same_samples(tokenizer, graders, tmp_path, background, staleness, updates):
    if background == "thread" and not staleness:
        with pytest.raises(UserError, match="nothing may be collected ahead"):
            make_source(tokenizer, graders, tmp_path, rollout=aged(0, "thread"))
        return
    config = CONFIG.model_copy(update={"updates_per_rollout": updates})

    def go(source, model, steps):
        found = []
        for step in steps:
            found.append([(b.tokens_BT, b.weights_BT, b.extras, b.scalars) for b in source.next(step)])
            nudge(model, step)
        return found

    model = policy()
    with make_source(tokenizer, graders, tmp_path / "whole", model, config, aged(staleness, background)) as source:
        whole = go(source, model, range(7))
    model = policy()
    with make_source(tokenizer, graders, tmp_path / "torn", model, config, aged(staleness, background)) as source:
        torn = go(source, model, range(4))
        state = json.loads(json.dumps(source.state_dict()))
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        go(source, model, [4, 5])  # Done, but never saved.
    model = policy()
    model.load_state_dict(kept)
    with make_source(tokenizer, graders, tmp_path / "torn", model, config, aged(staleness, background)) as source:
        source.load_state_dict(state)
        torn += go(source, model, range(4, 7))
    for one, other in zip(whole, torn, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    trained = [gather_trained(tmp_path / side, 7) for side in ("whole", "torn")]
    assert trained[0] == trained[1] and len(trained[0]) > 10
    ids = [(row["rollout"], row["group"], row["sample"]) for row in trained[0]]
    assert len(ids) == len(set(ids)), "a sample was trained on twice"


def test_a_rewound_run_goes_on_with_other_prompts_and_fresh_weights(tokenizer, graders, tmp_path):
    model = policy()
    source = make_source(tokenizer, graders, tmp_path, model, rollout=aged(1))
    for step in range(3):
        source.next(step)
    state = source.state_dict()
    for step in range(3, 6):
        source.next(step)
    source.load_state_dict(state)
    source.next(6)  # Steps 3 to 5 are left out for good.
    assert source.facts.version == 6 and source.facts.age == 0
    seen = [row["task"] for row in read_jsonl(tmp_path / "000006.jsonl")]
    # The walk over the tasks went on: 12 arithmetic prompts before this rollout are two epochs of five and two more.
    walked = [row["task"] for n in range(6) for row in read_jsonl(tmp_path / f"{n:06d}.jsonl")]
    assert len(seen) == 4 and set(walked) >= set(seen)


def test_what_a_rollout_raises_reaches_the_trainer(tokenizer, graders):
    collector = make_collector(tokenizer, graders)
    queue = RolloutQueue(collector, 1, "thread")

    def broken(*arguments):
        raise UserError("The grader is gone", "start it")

    queue.take(0, 0)
    queue.state_dict()  # Waits for what is under way.
    queue._worker.collector.collect = broken
    queue.take(1, 1)
    with pytest.raises(UserError, match="The grader is gone"):
        queue.take(2, 2)
    queue.close()


def test_a_rollout_process_that_dies_is_reported_and_one_whose_parent_dies_ends(tmp_path, graders):
    tokenizer = tiny_tokenizer(tmp_path)
    worker = ProcessWorker(Plan(tmp_path, aged(1)).make, 1)
    weights = make_collector(tokenizer, graders).engine.model.state_dict()
    rollout, memory = worker.collect(weights, 0, 0, Memory())
    assert rollout.number == 0 and memory.following == 1
    worker.process.kill()
    with pytest.raises(UserError, match=r"process ended with status -9 while it collected rollout 1.*Fix: "):
        worker.collect(weights, 1, 1, memory)
    worker.close()
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.rl.support import Plan\n"
        "from loopline.rl.rollout_queue import ProcessWorker\nfrom loopline.rl.rollout_config import RolloutConfig\n"
        "if __name__ == '__main__':\n"
        f"    worker = ProcessWorker(Plan(Path({str(tmp_path)!r}), RolloutConfig()).make, 1)\n"
        "    print(worker.process.pid, flush=True)\n    time.sleep(60)\n"
    )
    (tmp_path / "parent.py").write_text(script)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < until, "the rollout process outlives its parent"
        time.sleep(0.1)
