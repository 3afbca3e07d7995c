"""A trajectory keeps tokens exactly, counts each sampled token once, and survives JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.inference.trajectory import Trajectory

tokens = st.lists(st.integers(0, 999), max_size=6)
steps = st.lists(st.tuples(st.integers(0, 50), tokens, st.booleans(), st.booleans()), max_size=12)


def grow(prompt: list[int], plan: list[tuple[int, list[int], bool, bool]]) -> tuple[Trajectory, list[list[int]]]:
    """A random graph, and for each node the tokens of its path kept independently."""
    trajectory = Trajectory(task_id="t")
    trajectory.add(None, prompt)
    paths = [list(prompt)]
    for place, ids, sampled, abandoned in plan:
        open_nodes = [node.index for node in trajectory.nodes if not node.abandoned]
        parent = open_nodes[place % len(open_nodes)]
        logprobs = [-0.01 * i for i in range(len(ids))] if sampled else None
        trajectory.add(parent, ids, logprobs=logprobs, policy_version=3, abandoned=sampled and abandoned)
        paths.append(paths[parent] + ids)
    return trajectory, paths


@given(tokens, steps)
def test_a_view_is_the_joined_tokens_of_its_path(prompt: list[int], plan: list) -> None:
    trajectory, paths = grow(prompt, plan)
    for index, expected in enumerate(paths):
        view = trajectory.view(index)
        assert view.token_ids == expected
        assert len(view.sampled) == len(view.logprobs) == len(view.versions) == len(expected)
        assert all(logprob == 0 for logprob, sampled in zip(view.logprobs, view.sampled, strict=True) if not sampled)


@given(tokens, steps)
def test_training_views_hold_each_kept_sampled_token_exactly_once(prompt: list[int], plan: list) -> None:
    trajectory, _ = grow(prompt, plan)
    kept = sum(len(node.token_ids) for node in trajectory.nodes if node.sampled and not node.abandoned)
    views = trajectory.training_views()
    assert sum(sum(view.sampled) for view in views) == kept
    paths = [trajectory.view(leaf).token_ids for leaf in trajectory.leaves()]
    assert all(view.token_ids in paths for view in views)


@given(tokens, steps)
def test_json_round_trip(prompt: list[int], plan: list) -> None:
    trajectory, _ = grow(prompt, plan)
    trajectory.flag("turn_limit")
    assert Trajectory.from_json(json.loads(json.dumps(trajectory.to_json()))) == trajectory


def test_refuses_unmatched_logprobs_and_unknown_parents() -> None:
    trajectory = Trajectory(task_id="t")
    with pytest.raises(ValueError, match="2 sampled tokens came with 1"):
        trajectory.add(None, [1, 2], logprobs=[0.0])
    with pytest.raises(ValueError, match="node 4 does not exist"):
        trajectory.add(4, [1])
