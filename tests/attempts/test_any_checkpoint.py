"""The harness and the service on checkpoints of every shape: their own templates, calls, stop tokens and shards."""

import json

import httpx
import pytest

from loopline.attempts.config import HarnessConfig
from loopline.attempts.program import Harness
from loopline.attempts.scripted import ScriptedEngine
from loopline.chat.load import load_tokenizer
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.checkpoint import save_checkpoint
from loopline.serve.config import ServeConfig
from loopline.serve.model import ServedModel
from loopline.serve.server import BackgroundServer
from tests.chat.templates import STOCK, TEMPLATES, save_stock
from tests.environments import world
from tests.serve import scripted
from tests.support_model import tiny_model

GREEDY = Sampling(max_new_tokens=400, temperature=0)
CONFIG = HarnessConfig(max_turns=4, max_context_tokens=100_000)


@pytest.mark.parametrize("kind", [kind for kind in (*TEMPLATES, *STOCK) if kind != "deepseek"])
def test_the_oracle_solves_everything_in_the_checkpoints_own_form(tmp_path, kind):
    tokenizer = load_tokenizer(save_stock(tmp_path, kind))
    tasks, environment = world.tasks(), world.environment()
    engine = ScriptedEngine.oracle(tokenizer, tasks)
    runs = Harness(CONFIG).run(engine, environment, tasks, GREEDY)
    scores = [grade.score for grade in environment.grade(tasks, runs)]
    assert scores == [1.0] * len(tasks)
    for run in runs:
        assert not run.flags and all(call["ok"] for call in run.calls)
        view = run.view(run.head)
        # What was sampled stands in the context as it was sampled, closed by the stop token.
        sampled = [node for node in run.path(run.head) if node.sampled]
        assert len(sampled) == run.turns and all(node.token_ids[-1] in tokenizer.stop_ids for node in sampled)
        assert sum(view.sampled) == sum(len(node.token_ids) for node in sampled)
    # Every prompt that the engine saw ends where the template has the assistant write.
    ends = {tokenizer.decode(prompt)[-9:] for prompt in engine.prompts}
    assert all(end == next(iter(ends)) for end in ends) or kind in ("brackets", "mistral")


def test_a_template_that_rewrites_history_continues_in_a_new_branch(tmp_path):
    """Its prompt opens a thought that history lacks: later turns are asked with the prompt that a server would show."""
    tokenizer = load_tokenizer(save_stock(tmp_path, "deepseek"))
    (call,) = [tokenizer.form.write([scripted_call()])]

    def say(prompt):
        return "so</think>" + ("12" if "tool: " in tokenizer.decode(prompt) else call)

    engine = ScriptedEngine(tokenizer, say)
    (run,) = Harness(CONFIG).run(engine, world.environment(), [world.single("red cup")], GREEDY)
    assert (run.finish, run.answer, run.flags) == ("stop", "<think>so</think>12", ["rewritten_history"])
    assert [call["name"] for call in run.calls] == ["search"]
    assert len(run.leaves()) == 2 and len(run.training_views()) == 2
    assert [message["role"] for message in run.messages()] == ["user", "assistant", "tool", "assistant"]
    assert run.view(run.head).token_ids[: len(engine.prompts[1])] == engine.prompts[1]
    history = tokenizer.decode(engine.prompts[1])
    assert call in history and history.count("<think>") == 1 and history.endswith("<think>\n")


def scripted_call():
    from loopline.chat.forms.form import Call

    return Call("search", {"query": "red cup"})


@pytest.mark.parametrize("kind", ["headers", "coder", "mistral"])
def test_the_service_offers_tools_and_reads_calls_in_the_templates_form(tmp_path, kind):
    tokenizer = load_tokenizer(save_stock(tmp_path, kind))
    tools = [tool.schema() for tool in world.environment().tools.values()]
    seen = []

    def reply(text, seed):
        seen.append(text)
        return "12 coins." if "a red cup" in text.lower() else tokenizer.form.write([scripted_call()])

    engine = scripted.ScriptedEngine(tokenizer, reply)
    with BackgroundServer(scripted.served(engine, context=4096), ServeConfig(), None) as server:
        messages = [{"role": "user", "content": "What is the price?"}]
        body = {"model": "loopline", "messages": messages, "tools": tools, "max_tokens": 300}
        first = httpx.post(server.url + "/v1/chat/completions", json=body).json()["choices"][0]
        assert first["finish_reason"] == "tool_calls"
        assert json.loads(first["message"]["tool_calls"][0]["function"]["arguments"]) == {"query": "red cup"}
        key = first["message"]["tool_calls"][0]["id"]
        messages += [first["message"], {"role": "tool", "tool_call_id": key, "content": "A red cup costs 12 coins."}]
        last = httpx.post(server.url + "/v1/chat/completions", json=body).json()["choices"][0]
    assert last["message"]["content"] == "12 coins." and last["finish_reason"] == "stop"
    assert all("search" in text for text in seen) and "A red cup costs 12 coins." in seen[1]


def test_a_sharded_checkpoint_with_two_stop_tokens_is_served(tmp_path):
    tokenizer = load_tokenizer(save_stock(tmp_path / "tokenizer", "chatml", eos_token="<|endoftext|>"))
    model = tiny_model(3, vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    path = tmp_path / "checkpoint"
    save_checkpoint(model, tmp_path / "tokenizer", path, shard_bytes=40_000)
    assert len(list(path.glob("*.safetensors"))) > 1 and len(tokenizer.stop_ids) == 2
    served = ServedModel.load(path)
    assert set(tokenizer.stop_ids) <= set(served.engine.tokenizer.stop_ids) and len(served.weights_version) == 16
    tokenizer = load_tokenizer(path)
    asked = {"role": "user", "content": "the lamp"}
    with BackgroundServer(served, ServeConfig(), None) as server:
        body = {"model": "loopline", "messages": [asked], "max_tokens": 8, "temperature": 0}
        answer = httpx.post(server.url + "/v1/chat/completions", json=body).json()["choices"][0]["message"]
    prompt = tokenizer.render([asked], add_generation_prompt=True)
    done = TorchEngine(model, tokenizer).generate([prompt], Sampling(max_new_tokens=8, temperature=0))[0][0]
    assert answer["content"] == tokenizer.parse(done.token_ids, prompt=prompt).content
