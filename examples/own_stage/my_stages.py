"""A stage kind from another package: the mean of several checkpoints' weights (a model soup, arXiv:2203.05482).

    pip install ./examples/own_stage
    loopline stages                       # now lists "average"
    loopline run examples/own_stage/recipe.yaml --set start.model=DIR

The kind is registered by importing this module, which the entry point in pyproject.toml asks for. Not covered:
checkpoints of different shapes (refused).
"""

from __future__ import annotations

from collections.abc import Mapping

from loopline.base.config import Config
from loopline.base.errors import UserError
from loopline.base.stage import Takes, stage
from loopline.store.artifact import Artifact
from loopline.store.context import Context


@stage("average", run="my_stages:average", takes={"checkpoints": Takes("checkpoint", many=True)}, gives="checkpoint")
class AverageConfig(Config):
    """The mean of the weights of several checkpoints of one shape."""

    weights: dict[str, float] = {}
    """Share of a node's checkpoint; one that is not named weighs 1."""


def average(config: AverageConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Average the checkpoints that come as `checkpoints.<node>`."""
    # Imported here, so that listing the stage kinds stays quick.
    from loopline.model.checkpoint import load_model, save_checkpoint

    items = [(role.partition(".")[2], artifact) for role, artifact in inputs.items()]
    shares = {name: config.weights.get(name, 1.0) for name, _ in items}
    total = sum(shares.values())
    if total <= 0:
        raise UserError("average.weights leaves nothing", "give some node a weight above 0")
    first = load_model(items[0][1].path)
    mean = {name: value * (shares[items[0][0]] / total) for name, value in first.state_dict().items()}
    for name, artifact in items[1:]:
        other = load_model(artifact.path).state_dict()
        if {key: value.shape for key, value in other.items()} != {key: value.shape for key, value in mean.items()}:
            raise UserError(f"{name} has another shape than {items[0][0]}", "average checkpoints of one start")
        for key, value in other.items():
            mean[key] += value * (shares[name] / total)
    first.load_state_dict(mean)
    save_checkpoint(first, items[0][1].path, ctx.out)
    ctx.metrics.summary(headline=f"mean of {', '.join(name for name, _ in items)}")
