"""Every shape of template passes its check, or the check says what it cannot; conversations go on token by token."""

import json

import pytest
from typer.testing import CliRunner

from loopline.base.errors import UserError
from loopline.chat.check import ASK, RESULT, SAID, TOOLS, chat_check, same
from loopline.chat.continuation import Continuation, Rewritten
from loopline.chat.load import load_tokenizer
from loopline.cli import app
from tests.chat.templates import STOCK, TEMPLATES, save_stock
from tests.support_model import tiny_tokenizer

CANNOT = {
    "chatml": {"tools", "calls", "reasoning"},
    "headers": {"tools", "words_with_calls", "several_calls", "reasoning"},
    "calls": {"tools", "reasoning"},
    "thinking": {"tools", "calls"},
    "brackets": {"system", "tools", "calls", "results", "reasoning"},
    "coder": {"reasoning"},
    "mistral": {"system", "words_with_calls", "reasoning"},
    "gemma": {"tools", "calls", "results", "reasoning"},
    "deepseek": {"tools", "words_with_calls", "reasoning", "reasoning kept"},
    "phi": {"tools", "calls", "reasoning"},
}
FORM = {"coder": "qwen3-coder", "mistral": "mistral", "gemma": "gemma", "deepseek": "deepseek", "headers": "llama"}
FORM["brackets"] = "mistral"


@pytest.mark.parametrize("kind", CANNOT)
def test_every_shape_passes_or_says_what_it_cannot(tmp_path, kind):
    report = chat_check(save_stock(tmp_path / kind, kind))
    assert report.passed, "\n".join(report.lines())
    lacks = {p.name.partition(": ")[2] for p in report.probes if p.name.startswith("what it lacks")}
    assert lacks == CANNOT[kind]
    assert report.form == FORM.get(kind, "hermes")
    read = {p.name.partition(": ")[2]: p.outcome for p in report.probes if p.name.startswith("parse")}
    lost = {"reasoning", "reasoning and a call"} if kind == "deepseek" else set()
    assert {name for name, outcome in read.items() if outcome != "pass"} == lost
    assert len(STOCK) + len(TEMPLATES) == len(CANNOT)


def test_our_own_format_passes_whole(tmp_path):
    from loopline.corpus import tokenizer as training

    training.save(training.train(["12+5=17 and the blue lamp costs 7 coins. " * 9, "<think>12"], 288), tmp_path)
    report = chat_check(tmp_path)
    assert report.passed and {probe.outcome for probe in report.probes} == {"pass"}


BROKEN = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content | upper + '<|im_end|>' }}{% endfor %}"


def test_a_template_that_changes_what_was_said_fails(tmp_path):
    path = save_stock(tmp_path / "a", "chatml", chat_template=BROKEN)
    report = chat_check(path)
    failed = {probe.name for probe in report.probes if probe.outcome == "fail"}
    assert not report.passed and "mask and stop tokens" in failed
    result = CliRunner().invoke(app, ["chat-check", str(path), "--json"])
    assert result.exit_code == 1 and json.loads(result.stdout)["passed"] is False
    good = CliRunner().invoke(app, ["chat-check", str(save_stock(tmp_path / "b", "chatml"))])
    assert good.exit_code == 0 and "passed" in good.stdout
    with pytest.raises(UserError, match="no chat template"):
        chat_check(save_stock(tmp_path / "c", "chatml", chat_template=None))


@pytest.mark.parametrize("kind", [*CANNOT, "ours"])
def test_what_follows_a_sampled_call_is_what_the_template_renders(tmp_path, kind):
    """Prompt, sampled ids and continuation, joined, are the rendering of the whole conversation."""
    tokenizer = tiny_tokenizer(tmp_path) if kind == "ours" else load_tokenizer(save_stock(tmp_path / kind, kind))
    call = SAID["a call"].to_openai()
    prompt = tokenizer.render([ASK], add_generation_prompt=True, tools=TOOLS)
    found = tokenizer.continuation([ASK, call], [RESULT], tools=TOOLS)
    whole = tokenizer.render([ASK, call, RESULT], add_generation_prompt=True, tools=TOOLS)
    if kind == "deepseek":
        # It opens a thought in the prompt that history lacks.
        assert isinstance(found, Rewritten) and found.prompt == whole and "rendered otherwise" in found.reason
        return
    assert isinstance(found, Continuation)
    middle = whole[len(prompt) : len(whole) - len(found.ids)]
    assert [*prompt, *middle, *found.ids] == whole
    assert same(tokenizer.parse(middle, TOOLS), SAID["a call"]) and middle[-1] in tokenizer.stop_ids
    cut = tokenizer.continuation([ASK, call], [RESULT], tools=TOOLS, closed=False)
    assert isinstance(cut, Continuation) and cut.ids == [middle[-1], *found.ids]


def test_history_that_loses_its_reasoning_begins_a_new_branch(tmp_path):
    tokenizer = load_tokenizer(save_stock(tmp_path / "a", "thinking"))
    for said in (SAID["reasoning"].to_openai(), {"role": "assistant", "content": "<think>6 x 7</think>42"}):
        found = tokenizer.continuation([ASK, said], [ASK])
        assert isinstance(found, Rewritten) and "loses its" in found.reason
        assert "6 x 7 =" not in tokenizer.decode(found.prompt)
    assert isinstance(tokenizer.continuation([ASK, SAID["words"].to_openai()], [ASK]), Continuation)


OPENED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)


def test_a_thought_that_the_prompt_opens_is_part_of_the_answer(tmp_path):
    path = save_stock(tmp_path / "a", "chatml", chat_template=OPENED)
    report = chat_check(path)
    assert report.passed, "\n".join(report.lines())
    tokenizer = load_tokenizer(path)
    ids, mask = tokenizer.render_with_mask([ASK, SAID["reasoning"].to_openai()])
    written = [token for token, wrote in zip(ids, mask, strict=True) if wrote]
    assert tokenizer.answer_text(written, ids[: mask.index(True)]) == "<think>6 x 7 = 42\nso 42\n</think>\n\nIt is 42."
    assert tokenizer.parse(written, prompt=ids[: mask.index(True)]) == SAID["reasoning"]
