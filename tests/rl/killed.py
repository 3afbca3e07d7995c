"""A GRPO run per line of standard input, each in a process of its own that has nothing left to import.

    python -m tests.rl.killed WORLD          # lines: {"dir": ..., "config": {...}, "moment": 17}

The process kills itself, with SIGKILL, at the moment of that number: right before or after it samples, computes a
gradient, or writes, flushes or renames a file. Prints its status once it is dead.
"""

import itertools
import json
import os
import signal
import sys
from pathlib import Path


def arm(moment):
    """Die at the `moment`-th of the moments of this process."""
    from loopline.inference.scheduler import Scheduler
    from loopline.rl.collect import Collector
    from loopline.training import loop

    left = itertools.count(1)

    def die():
        if next(left) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(target, name):
        plain = getattr(target, name)

        def watched(*arguments, **options):
            die()
            result = plain(*arguments, **options)
            die()
            return result

        setattr(target, name, watched)

    for target, name in (
        (os, "fsync"),
        (os, "replace"),
        (loop, "accumulate"),
        (Collector, "collect"),
        (Scheduler, "_prefill"),
    ):
        around(target, name)


def run(world, job):
    """The stage, as the line would run it: into a directory whose state survives."""
    from loopline.posttrain.config import GRPOConfig
    from loopline.posttrain.grpo import grpo
    from loopline.store.artifact import Artifact
    from tests.support import make_context

    if job["moment"]:
        arm(job["moment"])
    inputs = {name: Artifact.load(Path(path)) for name, path in world.items()}
    grpo(GRPOConfig.model_validate(job["config"]), inputs, make_context(Path(job["dir"]), seed=5, threads=1))


def main():
    import torch

    import loopline.posttrain.grpo  # noqa: F401
    from loopline.training import loop
    from loopline.training.config import OptimizerConfig
    from tests.support_model import tiny_model

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
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    import loopline  # noqa: F401

    main()
