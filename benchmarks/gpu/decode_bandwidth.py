"""How near decoding comes to what memory allows: 64 rows of a 0.6B model of Qwen3's shape in bfloat16.

    python benchmarks/gpu/decode_bandwidth.py           # needs a CUDA device, about two minutes
    python benchmarks/gpu/decode_bandwidth.py --dry     # on the CPU, tiny, to see that it runs

A decoding step reads every weight once, and of each row the keys and values so far; the floor is those bytes over the
bandwidth of a copy, measured in the same process. A step's time is the difference between generating many and few
tokens, so prompts and the recording of graphs do not count; sampling does. `ratio` is the floor over the measured time:
1 cannot be beaten. Writes `results/gpu_decode.json`. Not covered: quantized weights, other servers.
"""

from __future__ import annotations

from typing import Any

import device as gpu  # It lets the next ones be found.

# isort: split
import common
import torch

from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.decoder import Decoder


def floor_bytes(model: Decoder, rows: int, context: float) -> float:
    """Bytes that one step must read: weights, and keys and values of `context` positions a row."""
    config, size = model.config, model.output_weight.element_size()
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return size * (config.parameters() + rows * context * cached)


def main() -> None:
    arguments = gpu.parse(__doc__)
    device = gpu.require(arguments)
    rows, prompt, few, many = (4, 8, 4, 16) if arguments.dry else (64, 512, 64, 512)
    dtype = torch.float32 if arguments.dry else torch.bfloat16
    model = gpu.model(arguments, prompt + many, device, dtype).eval()
    tokenizer: Any = None
    engine = TorchEngine(model, tokenizer, batch_size=rows)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(model.config.vocab_size, (rows, prompt), generator=generator).tolist()
    speed = gpu.bandwidth(device)

    def run(count: int) -> float:
        settings = Sampling(max_new_tokens=count, stop_token_ids=())
        return gpu.seconds(lambda: engine.generate(prompts, settings), device, times=1)

    ratios, steps = [], []
    for _ in range(arguments.repeats):
        step = (run(many) - run(few)) / (many - few)
        floor = floor_bytes(model, rows, prompt + (few + many) / 2) / speed
        steps.append(step)
        ratios.append(floor / step)
        print(
            f"{step * 1e3:.2f} ms a step, floor {floor * 1e3:.2f} ms: {floor / step:.1%}, {rows / step:.0f} tokens/s",
            flush=True,
        )
    result = {
        **common.spread(ratios),
        "n": arguments.repeats,
        "what": "time that memory needs for a decoding step over the time it takes",
        "seconds_per_step": steps,
        "tokens_per_second": [rows / step for step in steps],
        "bytes_per_second": speed,
        "settings": {"rows": rows, "prompt": prompt, "tokens": [few, many], "device": gpu.name(device)},
        "parameters": model.config.parameters(),
        "versions": common.versions(),
    }
    common.finish("gpu_decode", result, arguments)


if __name__ == "__main__":
    main()
