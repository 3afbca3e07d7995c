"""Take a checkpoint out to `transformers` and bring it back: what you train elsewhere can be served here.

    .venv/bin/python examples/own_checkpoint/round_trip.py CHECKPOINT OUT
    loopline serve --model OUT

Loads CHECKPOINT with transformers, lets it answer, takes one step of plain fine-tuning, and saves it to OUT. Needs
`transformers` (part of the development tools). Not covered: other tokenizers; OUT keeps the checkpoint's own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CONVERSATION = [{"role": "user", "content": "12+5-3=?"}, {"role": "assistant", "content": "14"}]


def main(checkpoint: Path, out: Path) -> None:
    """Generate, train a step, save."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompt = tokenizer.apply_chat_template(
        CONVERSATION[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    print(tokenizer.decode(written[0]))

    ids = tokenizer.apply_chat_template(CONVERSATION, return_tensors="pt", return_dict=True)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    print(f"one step at a loss of {loss.item():.3f}")

    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"saved to {out}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
