"""Objectives: pure functions from a model and a batch to a sum, a normalizer and metrics.

    objective = DPO(beta=0.1)
    total, normalizer, metrics = objective.loss(model, batch)

The loop adds the sums of an optimizer step's micro-batches and divides once by the sum of their normalizers, so the
gradient does not depend on how the step was split. Beside each objective is its loss as a function of a few
tensors, to be checked against its paper. The reinforcement learning objectives are in `rl.objective`, on the same
signature.
"""

from loopline.training.objectives.objective import Loss, Objective
from loopline.training.objectives.preference import CPO, DPO, KTO, ORPO, PreferenceInput, SimPO
from loopline.training.objectives.reward_model import BradleyTerry, Pointwise, ProcessReward
from loopline.training.objectives.scores import TokenScores, score_tokens, sum_by_sequence
from loopline.training.objectives.supervised import NextToken

__all__ = [
    "CPO",
    "DPO",
    "KTO",
    "ORPO",
    "BradleyTerry",
    "Loss",
    "NextToken",
    "Objective",
    "Pointwise",
    "PreferenceInput",
    "ProcessReward",
    "SimPO",
    "TokenScores",
    "score_tokens",
    "sum_by_sequence",
]
