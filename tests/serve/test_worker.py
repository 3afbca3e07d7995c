"""One thread talks to the engine; company does not change an answer."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest

from loopline.inference.engine import Sampling, TorchEngine
from loopline.serve.worker import EngineWorker, QueueFull
from tests.serve.scripted import ScriptedEngine
from tests.support_model import tiny_model, tiny_tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    return tiny_tokenizer(tmp_path)


def test_waiting_requests_share_a_batch_and_each_gets_its_own_limit(tokenizer):
    gate = threading.Event()
    worker = EngineWorker(ScriptedEngine(tokenizer, lambda text, seed: f"{seed}" * 9, gate), max_batch=8)
    first = worker.submit(tokenizer.encode("one"), Sampling(seed=1))
    futures = [worker.submit(tokenizer.encode("q"), Sampling(seed=s, max_new_tokens=s)) for s in (2, 3, 4)]
    gate.set()
    wait([first, *futures])
    assert [len(future.result()[0].token_ids) for future in futures] == [2, 3, 4]
    assert [future.result()[0].finish for future in futures] == ["length"] * 3
    assert sum(worker.batches) == 4 and len(worker.batches) <= 2
    worker.close()


def test_batches_of_the_real_engine_equal_single_requests(tmp_path, tokenizer):
    engine = TorchEngine(tiny_model(vocab_size=300), tokenizer)
    prompts = [
        tokenizer.encode("one plus two"),
        tokenizer.encode("qz" * 20),
        tokenizer.encode("x"),
    ]
    samplings = [Sampling(max_new_tokens=limit, seed=seed) for limit, seed in ((100, 7), (20, 8), (30, 9))]
    worker = EngineWorker(engine, context=128)
    worker.expect(3)
    futures = [worker.submit(prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
    for prompt, sampling, future in zip(prompts, samplings, futures, strict=True):
        alone = engine.generate([prompt], sampling, seeds=[sampling.seed])[0]
        assert [c.token_ids for c in future.result(30)] == [c.token_ids for c in alone]
    # The long prompt leaves 100 tokens no room, so it may not share the first one's batch.
    assert sorted(worker.batches) == [1, 2]
    worker.close()


def test_expect_holds_the_batch_until_all_are_there(tokenizer):
    worker = EngineWorker(ScriptedEngine(tokenizer, lambda text, seed: text), window_s=0.0)
    worker.expect(3)
    early = [worker.submit([20], Sampling()), worker.submit([21], Sampling())]
    assert not wait(early, timeout=0.1).done
    late = worker.submit([22], Sampling())
    assert late.result(5) and early[0].result(5)
    assert worker.batches == [3]
    worker.close()


def test_streams_take_turns_and_batches_run_between_tokens(tokenizer):
    worker = EngineWorker(ScriptedEngine(tokenizer, lambda text, seed: "abcdef"), window_s=0.0)
    seen: list[str] = []
    ends = [threading.Event(), threading.Event()]
    hold = threading.Event()

    def show(name):
        hold.wait(5)
        seen.append(name)

    for name, end in zip("xy", ends, strict=True):
        worker.stream([20], Sampling(), lambda *_, name=name: show(name), lambda _, end=end: end.set())
    hold.set()
    future = worker.submit([20], Sampling())
    assert future.result(5)
    assert all(end.wait(5) for end in ends)
    assert seen.count("x") == seen.count("y") == 7
    assert "xy" in "".join(seen) or "yx" in "".join(seen)
    worker.close()


def test_a_cancelled_stream_ends_and_frees_its_place(tokenizer):
    worker = EngineWorker(ScriptedEngine(tokenizer, lambda text, seed: "a" * 5000))
    ended, count = threading.Event(), []
    handle = worker.stream([20], Sampling(max_new_tokens=10_000), lambda *_: count.append(1), lambda _: ended.set())
    handle.cancel()
    assert ended.wait(5)
    assert len(count) < 5001
    worker.close()


def test_an_engine_failure_reaches_the_caller_and_the_next_request_still_works(tokenizer):
    def reply(text, seed):
        if seed == 13:
            raise ValueError("no luck")
        return "fine"

    worker = EngineWorker(ScriptedEngine(tokenizer, reply), window_s=0.0)
    with pytest.raises(ValueError, match="no luck"):
        worker.submit([20], Sampling(seed=13)).result(5)
    assert worker.submit([20], Sampling(seed=1)).result(5)
    worker.close()


def test_a_full_queue_refuses(tokenizer):
    gate = threading.Event()
    worker = EngineWorker(ScriptedEngine(tokenizer, lambda text, seed: "a", gate), max_queue=2, max_batch=1)
    futures = []
    refused = 0
    for _ in range(5):
        try:
            futures.append(worker.submit([20], Sampling()))
        except QueueFull:
            refused += 1
    # One may already run; two may wait.
    assert 2 <= len(futures) <= 3 and refused == 5 - len(futures)
    gate.set()
    wait(futures)
    worker.close()
