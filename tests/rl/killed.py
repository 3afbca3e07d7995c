"""A GRPO run per line of standard input, each in a process of its own that has nothing left to import.

    python -m tests.rl.killed WORLD          # lines: {"dir": ..., "config": {...}}

Prints the process's id, and once it is dead its status.
"""

import json
import os
import sys
from pathlib import Path


def run(world, job):
    """The stage, as the line would run it: into a directory whose state survives."""
    from tests.support import make_context
    from throughline.posttrain.config import GRPOConfig
    from throughline.posttrain.stage import grpo
    from throughline.store.artifact import Artifact

    inputs = {name: Artifact.load(Path(path)) for name, path in world.items()}
    grpo(GRPOConfig.model_validate(job["config"]), inputs, make_context(Path(job["dir"]), seed=5, threads=1))


def main():
    import torch

    from tests.support_model import tiny_model
    from throughline.posttrain import stage  # noqa: F401
    from throughline.training import loop
    from throughline.training.config import OptimizerConfig

    torch.set_num_threads(1)
    loop.build_optimizers(tiny_model(), OptimizerConfig())
    world = json.loads(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run(world, json.loads(line))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    import throughline  # noqa: F401

    main()
