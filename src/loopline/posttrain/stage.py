"""Stage 5, post-training: a base in, an assistant out, in four steps with a checkpoint each.

    loopline run laptop --until align

Cold-start SFT makes RL stable, RL finds what pays, rejection sampling turns its successes into supervised data, and
alignment settles manners. `reject` is rejection sampling by itself, for any
policy, prompts and grader. This module only gathers the stage functions.
"""

from loopline.posttrain.align import align
from loopline.posttrain.grpo import grpo
from loopline.posttrain.reject import reject
from loopline.posttrain.rft import rft
from loopline.posttrain.sft import sft

__all__ = ["align", "grpo", "reject", "rft", "sft"]
