"""Chat templates in the shapes that open-weights families use, and a tokenizer with their control tokens.

Each is written twice: `mark` puts `{% generation %}` around what the assistant writes, so that `transformers` gives the
mask that ours must derive from the same template without it.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<s>",
    "</s>",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|python_tag|>",
)
INNER = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
OPEN, CLOSE = "{% generation %}", "{% endgeneration %}"


def chatml(mark: bool) -> str:
    a, b = (OPEN, CLOSE) if mark else ("", "")
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' %}" + a + "{{ m.content + '<|im_end|>' }}" + b + "{% else %}"
        "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def headers(mark: bool) -> str:
    """Headers with ids, trimmed contents, a system turn with a date: the shape of Llama 3."""
    a, b = (OPEN, CLOSE) if mark else ("", "")
    return (
        "{{- bos_token }}\n"
        "{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
        "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + strftime_now('%d %b %Y') + '\\n\\n' + system"
        " + '<|eot_id|>' }}\n"
        "{%- for m in rest %}\n"
        "{%- if m.role == 'assistant' and m.tool_calls %}\n"
        "{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}\n"
        "{%- set call = m.tool_calls[0].function %}\n"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
        + a
        + "{{- '{\"name\": \"' + call.name + '\", ' }}"
        "{{- '\"parameters\": ' + (call.arguments | tojson) + '}<|eot_id|>' }}" + b + "\n"
        "{%- elif m.role == 'tool' %}\n"
        "{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (m.content | tojson) + '<|eot_id|>' }}\n"
        "{%- elif m.role == 'assistant' %}\n"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
        + a
        + "{{- (m.content | trim) + '<|eot_id|>' }}"
        + b
        + "\n"
        "{%- else %}\n"
        "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + (m.content | trim) + '<|eot_id|>' }}\n"
        "{%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    )


CALL = (
    '\'<tool_call>\\n{"name": "\' + c.function.name + \'", "arguments": \' + (c.function.arguments | tojson)'
    " + '}\\n</tool_call>'"
)


def calls(mark: bool) -> str:
    """A default system turn, tool calls as tags, tool answers gathered in a user turn: the shape of Qwen 2.5."""
    a, b = (OPEN, CLOSE) if mark else ("", "")
    # A newline belongs to whatever follows the role, so a marked form has to be written otherwise.
    called = (
        "{{- '<|im_start|>assistant' }}{%- if m.content %}{{- '\\n' + m.content }}{% endif %}"
        "{%- for c in m.tool_calls %}{{- '\\n' + " + CALL + " }}{% endfor %}{{- '<|im_end|>\\n' }}"
    )
    if mark:
        called = (
            "{{- '<|im_start|>assistant\\n' }}" + a + "{%- if m.content %}{{- m.content + '\\n' }}{% endif %}"
            "{%- for c in m.tool_calls %}{%- if not loop.first %}{{- '\\n' }}{% endif %}{{- " + CALL + " }}{% endfor %}"
            "{{- '<|im_end|>' }}" + b + "{{- '\\n' }}"
        )
    return (
        "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nBe of use.<|im_end|>\\n' }}{% endif %}\n"
        "{%- for m in messages %}\n"
        "{%- if m.role == 'assistant' and not m.tool_calls %}\n"
        "{{- '<|im_start|>assistant\\n' }}" + a + "{{- m.content + '<|im_end|>' }}" + b + "{{- '\\n' }}\n"
        "{%- elif m.role == 'assistant' %}\n" + called + "\n"
        "{%- elif m.role == 'tool' %}\n"
        "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}\n"
        "{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}\n"
        "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}\n"
        "{%- else %}\n"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\n"
        "{%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"
    )


def thinking(mark: bool) -> str:
    """Thinking kept after the last question and stripped before it, a switch in the prompt: the shape of Qwen 3."""
    a, b = (OPEN, CLOSE) if mark else ("", "")
    return (
        "{%- set ns = namespace(last=messages | length - 1, open=true) %}\n"
        "{%- for m in messages[::-1] %}\n"
        "{%- set at = messages | length - 1 - loop.index0 %}\n"
        "{%- if ns.open and m.role == 'user' and not m.content.startswith('<tool_response>') %}\n"
        "{%- set ns.open = false %}{%- set ns.last = at %}\n"
        "{%- endif %}\n"
        "{%- endfor %}\n"
        "{%- for m in messages %}\n"
        "{%- if m.role == 'assistant' %}\n"
        "{%- set thought = '' %}{%- set said = m.content %}\n"
        "{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}\n"
        "{%- elif '</think>' in m.content %}\n"
        "{%- set thought = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
        "{%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}\n"
        "{%- endif %}\n"
        "{{- '<|im_start|>assistant\\n' }}" + a + "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
        "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said.lstrip('\\n') }}"
        "{%- else %}{{- said }}{% endif %}{{- '<|im_end|>' }}" + b + "{{- '\\n' }}\n"
        "{%- elif m.role == 'tool' %}\n"
        "{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}\n"
        "{%- else %}\n"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}\n"
        "{%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "{{- '<|im_start|>assistant\\n' }}\n"
        "{%- if enable_thinking is defined and enable_thinking is false %}\n"
        "{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}\n"
        "{%- endif %}"
    )


def brackets(mark: bool) -> str:
    """No generation prompt, alternation enforced: the shape of Llama 2."""
    a, b = (OPEN, CLOSE) if mark else ("", "")
    return (
        "{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}" + a + "{{ ' ' + m.content + ' ' + eos_token }}" + b + "{% endif %}{% endfor %}"
    )


RAISE = "{{ raise_exception('roles must alternate') }}"
TURNS = "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}" + RAISE + "{% endif %}"
LIST = "{%- for t in tools %}{{- '\\n' + (t | tojson) }}{% endfor %}"
MARKED = {"call": "'<tool_call>\\n<function=' + c.function.name + '>\\n'"}
STOCK = {
    # Tools in the system turn, calls as nested tags, results in a user turn: the shape of Qwen3-Coder.
    "coder": (
        "{%- if tools %}{{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else '') }}"
        + LIST
        + "{{- '<|im_end|>\\n' }}{%- elif messages[0].role == 'system' %}"
        "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}"
        "{%- for m in messages if m.role != 'system' %}"
        "{%- if m.role == 'tool' %}"
        "{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
        "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}"
        "{%- for c in m.tool_calls %}{{- ('\\n' if m.content or not loop.first else '') + " + MARKED["call"] + " }}"
        "{%- for k, v in c.function.arguments.items() %}"
        "{{- '<parameter=' + k + '>\\n' + (v if v is string else v | tojson) + '\\n</parameter>\\n' }}{% endfor %}"
        "{{- '</function>\\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>",
    ),
    # No generation prompt, ids of nine characters, calls beside no words: the shape of Mistral.
    "mistral": (
        "{{- bos_token }}{%- set ns = namespace(last=0) %}"
        "{%- for m in messages if m.role == 'user' %}{%- set ns.last = messages.index(m) %}{% endfor %}"
        "{%- for m in messages %}"
        "{%- if m.role == 'user' %}"
        "{%- if tools and loop.index0 == ns.last %}"
        "{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{{- '[INST] ' + m.content + '[/INST]' }}"
        "{%- elif m.role == 'assistant' and m.tool_calls %}{{- '[TOOL_CALLS][' }}"
        "{%- for c in m.tool_calls %}"
        "{%- if not c.id or c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
        "{{- (c.function | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' + ('' if loop.last else ', ') }}{% endfor %}"
        "{{- ']' + eos_token }}"
        "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}"
        "{%- elif m.role == 'tool' %}"
        "{%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
        "{{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}"
        "{%- else %}{{ raise_exception('no role ' + m.role) }}{% endif %}{% endfor %}",
        "</s>",
    ),
    # The system text before the first question, roles in turn, nothing about tools: the shape of Gemma.
    "gemma": (
        "{{- bos_token }}{%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}"
        "{%- for m in (messages[1:] if first else messages) %}" + TURNS + "{{- '<start_of_turn>' + "
        "('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') + (m.content | trim)"
        " + '<end_of_turn>\\n' }}{% endfor %}"
        "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}",
        "<end_of_turn>",
    ),
    # Calls only where the content is none, arguments as text, thinking opened by the prompt and cut from history.
    "deepseek": (
        "{{- bos_token }}{%- for m in messages %}"
        "{%- if m.role == 'system' %}{{- m.content }}{%- elif m.role == 'user' %}{{- '<｜User｜>' + m.content }}"
        "{%- elif m.role == 'tool' %}{{- '<｜User｜>' + 'tool: ' + m.content }}"
        "{%- elif m.content is none %}{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}{%- for c in m.tool_calls %}"
        "{{- ('' if loop.first else '\\n') + '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + c.function.name }}"
        "{{- '\\n```json\\n' + c.function.arguments + '\\n```<｜tool▁call▁end｜>' }}{% endfor %}"
        "{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}"
        "{%- else %}{{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\\n' }}{% endif %}",
        "<｜end▁of▁sentence｜>",
    ),
    # Roles as tokens, nothing else: the shape of Phi.
    "phi": (
        "{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
        "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{% endif %}",
        "<|end|>",
    ),
}
"""Shapes whose masks are checked against what was said, not against `transformers`."""
TEMPLATES: dict[str, Any] = {
    "chatml": (chatml, "<|im_end|>"),
    "headers": (headers, "<|eot_id|>"),
    "calls": (calls, "<|im_end|>"),
    "thinking": (thinking, "<|im_end|>"),
    "brackets": (brackets, "</s>"),
}


def stock_fast() -> FastTokenizer:
    """A small byte-level tokenizer in which a newline before a newline is one token, as in the families' own."""
    fast = FastTokenizer(models.BPE())
    # Line breaks are a piece of their own whatever follows, as in the patterns of GPT-4's descendants.
    pattern = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+")
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    text = ["assistant user system tool\n\n the lamp costs seven coins\n\n\n and the jar costs three", " \n\n \n"]
    fast.train_from_iterator(text * 3, trainer)
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in INNER])
    return fast


def save_stock(path: Path, kind: str, mark: bool = False, **config: Any) -> Path:
    """A directory with the tokenizer and the template `kind`, in the files `transformers` writes."""
    made, end = TEMPLATES[kind] if kind in TEMPLATES else STOCK[kind]
    template = made if isinstance(made, str) else made(mark)
    path.mkdir(parents=True, exist_ok=True)
    stock_fast().save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>" if kind == "brackets" else "<|begin_of_text|>",
        "eos_token": end,
        "pad_token": "<|endoftext|>",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        **config,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path
