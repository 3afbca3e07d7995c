"""Which form of tool calls a checkpoint has, from its chat template and its control tokens.

    form = detect_form(template_source, tokens)

The template decides where it writes calls; for one that does not, the vocabulary and the shape of its turns do. What
shows none of this is offered tools in the Hermes form, in words. Not covered: proving it (see `chat.check`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from loopline.chat.forms import coder, deepseek, hermes, llama, mistral
from loopline.chat.forms.form import CallForm
from loopline.chat.forms.gemma import Gemma

FORMS: dict[str, Callable[[], CallForm]] = {
    "hermes": hermes.Hermes,
    "qwen3-coder": coder.Coder,
    "llama": llama.Llama,
    "mistral": mistral.Mistral,
    "deepseek": deepseek.DeepSeek,
    "gemma": Gemma,
}
HEADER, GEMMA_TURN = "<|start_header_id|>", "<start_of_turn>"
INSTRUCTION, DEEPSEEK_TURN = "[INST]", "<｜User｜>"


def detect_form(template: str | None, tokens: Collection[str]) -> CallForm:
    """The form of a chat template; `tokens` are the control tokens of its tokenizer."""
    source = template or ""
    if coder.FUNCTION in source:
        return coder.Coder()
    if hermes.OPEN in source:
        return hermes.Hermes()
    if mistral.OPEN in source or (mistral.OPEN in tokens and INSTRUCTION in source):
        return mistral.Mistral(args=mistral.ARGS in source)
    if deepseek.OPEN in source or (deepseek.OPEN in tokens and DEEPSEEK_TURN in source):
        return deepseek.DeepSeek(short=deepseek.OPEN in source and "```json" not in source)
    if llama.TAG in source or (HEADER in source and llama.TAG in tokens) or '"parameters": ' in source:
        return llama.Llama()
    if GEMMA_TURN in source:
        return Gemma()
    return hermes.Hermes()
