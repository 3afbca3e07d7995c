"""A whole GRPO step beside TRL's on a GPU: a 0.6B model of Qwen3's shape in bfloat16.

    pip install -e .[bench]
    python benchmarks/gpu/grpo_step.py           # needs a CUDA device, some ten minutes
    python benchmarks/gpu/grpo_step.py --dry     # on the CPU, tiny, to see that it runs

The comparison of `benchmarks/grpo_vs_trl.py` (see there for what is kept equal) with autocast to bfloat16 on both
sides. TRL takes the faster of `model.generate` and continuous batching; a server such as vLLM would be a third way, and
is not covered. Writes `results/gpu_grpo_vs_trl.json`.
"""

from __future__ import annotations

import device as gpu  # It lets the next ones be found.

# isort: split
import common
import grpo_vs_trl as grpo

SETTINGS = {
    "prompts": 16,
    "shortest": 64,
    "longest": 384,
    "max_new_tokens": 512,
    "mean_tokens": 160.0,
    "steps": 5,
    "tries": 2,
}


def main() -> None:
    arguments = gpu.parse(__doc__)
    device = gpu.require(arguments)
    changes = {"device": device.type, "precision": "float32" if arguments.dry else "bfloat16"}
    size, settings = ("tiny", grpo.QUICK["tiny"]) if arguments.dry else ("600m", SETTINGS)
    repeats = 1 if arguments.dry else arguments.repeats
    row = grpo.compare_steps(size, settings, arguments.threads, repeats, arguments.quick, changes)
    print(f"{row['ratio']:.2f} times TRL's samples/s ({row['low']:.2f} to {row['high']:.2f}, n = {row['n']})")
    result = {
        **row,
        "what": "Loopline's samples per second of a whole GRPO step over TRL's",
        "device": gpu.name(device),
        "versions": common.versions("trl", "transformers", "peft", "datasets"),
    }
    common.finish("gpu_grpo_vs_trl", result, arguments)


if __name__ == "__main__":
    main()
