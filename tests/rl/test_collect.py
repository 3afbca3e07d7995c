"""Drawing rollouts: further rounds until enough groups differ, thinking switched off, budgets, one prompt a visit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loopline.base.files import read_jsonl
from loopline.chat.tokenizer import THINK, THINK_END
from loopline.grading.grade import Grade
from loopline.grading.reward import LengthConfig, RewardConfig, ToggleConfig
from loopline.rl.collect import Memory, differs, pack_rollout, unpack_rollout
from loopline.rl.rollout_config import RolloutConfig
from loopline.rl.thinking import thinking_switches
from tests.rl.support import CONFIG, ParityGraders, make_collector, make_source, policy, task


class Picky(ParityGraders):
    """Grades like its parent, but only every so many prompts; the rest fail altogether."""

    def __init__(self, every):
        super().__init__()
        self.every, self.visits = every, []

    def grade(self, samples, name=None):
        grades = super().grade(samples, name)
        found = []
        for start in range(0, len(samples), CONFIG.group_size):
            self.visits.append(samples[start].task.id)
            silent = len(self.visits) % self.every
            group = [1.0, 0.0, 1.0, 0.0] if not silent else [0.0] * 4
            found += [Grade(score) for score in group]
        return found if name is None else grades


@pytest.mark.parametrize(
    ("every", "extra", "rounds", "kept"), [(1, 3, 1, 4), (2, 3, 2, 4), (3, 5, 3, 4), (4, 2, 3, 3), (100, 2, 3, 0)]
)
def test_rounds_are_drawn_until_enough_groups_differ_and_no_longer(tokenizer, every, extra, rounds, kept):
    config = CONFIG.model_copy(update={"dynamic_sampling": extra})
    graders = Picky(every)
    rollout, memory = make_collector(tokenizer, graders, config=config).collect(0, 0, Memory())
    assert (rollout.rounds, len(rollout.kept), len(rollout.groups)) == (rounds, kept, 4 * rounds)
    assert all(rollout.groups[number].has_signal for number in rollout.kept)
    # A surplus group of the last round is recorded, not trained on: a step keeps its size.
    assert len(rollout.kept) <= config.prompts_per_step
    assert memory == Memory(following=1, round=rounds, asked=4 * rounds)


def test_the_next_rollout_goes_on_where_the_rounds_ended(tokenizer):
    config = CONFIG.model_copy(update={"dynamic_sampling": 4})
    one, many = Picky(3), Picky(1)
    collector = make_collector(tokenizer, one, config=config)
    _, memory = collector.collect(0, 0, Memory())
    collector.collect(1, 1, memory)
    plain = make_collector(tokenizer, many, config=CONFIG)
    memory = Memory()
    while len(many.visits) < len(one.visits):
        _, memory = plain.collect(memory.following, 0, memory)
    assert many.visits == one.visits, "prompts were left out or asked twice"


def test_without_dynamic_sampling_there_is_one_round(tokenizer):
    rollout, _ = make_collector(tokenizer, Picky(4)).collect(0, 0, Memory())
    assert rollout.rounds == 1 and len(rollout.kept) == 1


def test_rounds_and_groups_are_counted_in_the_steps_line(tokenizer, tmp_path):
    config = CONFIG.model_copy(update={"dynamic_sampling": 1})
    source = make_source(tokenizer, Picky(4), tmp_path, config=config)
    source.next(0)
    assert "2 rounds for 2 groups" in source.why()
    assert source.metrics()["rollout/rounds"] == 2 and source.metrics()["rollout/trained_groups"] == 2
    assert len(read_jsonl(tmp_path / "000000.jsonl")) == 8


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 200))
def test_switches_are_spread_evenly(count, share, start):
    switches = thinking_switches(count, share, start)
    assert abs(switches.count(False) - share * count) <= 1 + 1e-6
    assert switches == (thinking_switches(1, share, start) + thinking_switches(count - 1, share, start + 1))


def test_prompts_without_thinking_end_in_a_closed_block_that_no_loss_sees(tokenizer, graders, tmp_path):
    rollout = RolloutConfig(no_think_share=0.5)
    collector = make_collector(tokenizer, graders, rollout=rollout)
    drawn, _ = collector.collect(0, 0, Memory())
    assert [group.thinking for group in drawn.groups] == [True, False, True, False]
    for group in drawn.groups:
        open_prompt = tokenizer.render(group.task.messages, add_generation_prompt=True)
        assert list(group.prompt) == (open_prompt if group.thinking else [*open_prompt, THINK, THINK_END])
    source = make_source(tokenizer, graders, tmp_path, rollout=rollout)
    for batch in source.next(0):
        closed = (batch.tokens_BT[:, 1:] == THINK_END) & (batch.tokens_BT[:, :-1] == THINK)
        assert not batch.weights_BT[:, 1:][closed].any()
    rows = read_jsonl(tmp_path / "000000.jsonl")
    assert [row.get("thinking", True) for row in rows] == [True, False, True, False]


def test_budgets_are_found_once_and_hold_from_the_next_visit(tokenizer):
    class Right(ParityGraders):
        def grade(self, samples, name=None):
            return [Grade(1.0) for _ in samples]

    reward = RewardConfig(length=LengthConfig(toggle=ToggleConfig(every=1, percentile=0.5, accuracy=0.5)))
    tasks = {"arithmetic": [task(0)]}
    config = CONFIG.model_copy(update={"prompts_per_step": 1})
    collector = make_collector(
        tokenizer, Right(), config=config, reward=reward, tasks_by_set=tasks, shares={"arithmetic": 1.0}
    )
    memory, seen = Memory(), []
    for number in range(4):
        rollout, memory = collector.collect(number, number, memory)
        (group,) = rollout.groups
        seen.append(([len(c.token_ids) for c in group.completions], group.rewards))
    budget = sorted(seen[0][0])[1]
    assert memory.budgets == {"arithmetic-0": budget}
    assert seen[0][1] == [1.0] * 4
    assert seen[1][1] == seen[3][1] == [1.0] * 4, "phases without budgets pay whatever the length"
    assert seen[2][1] == [float(length <= budget) for length in seen[2][0]]


def test_a_rollout_survives_the_training_state(tokenizer, graders):
    rollout, _ = make_collector(tokenizer, graders).collect(0, 0, Memory())
    again = unpack_rollout(pack_rollout(rollout))
    assert again == rollout


@given(st.lists(st.sampled_from([None, 0.0, 0.35, 1.0]), max_size=6))
def test_a_group_differs_when_two_graded_rewards_do(rewards):
    assert differs(rewards) == (len({reward for reward in rewards if reward is not None}) > 1)


def test_no_step_size_or_version_changes_what_is_drawn(tokenizer, graders):
    first, _ = make_collector(tokenizer, graders, policy()).collect(2, 2, Memory(2, 2, 8))
    second, _ = make_collector(tokenizer, graders, policy()).collect(2, 9, Memory(2, 2, 8))
    assert [group.texts for group in first.groups] == [group.texts for group in second.groups]
    assert {c.policy_version for group in second.groups for c in group.completions} == {9}


def test_a_budget_closes_thinking_and_its_marks_are_masked_and_counted(tokenizer, graders, tmp_path):
    """The forced end of thinking: weight 0 in every loss, counted in the step's line, the finish as it was."""
    config = CONFIG.model_copy(update={"max_new_tokens": 12, "drop_zero_signal": False})
    model = policy()
    with torch.no_grad():
        # A policy that likes to open a thought where its answer begins.
        prompt = tokenizer.render(task(1).messages, add_generation_prompt=True)
        model.embedding.weight[THINK] = 0.3 * model(torch.tensor([prompt]))[0, -1]
    budget = RolloutConfig(thinking_budget=2)
    source = make_source(tokenizer, graders, tmp_path, model, config, budget)
    batches = source.next(0)
    drawn, _ = make_collector(tokenizer, graders, model, config, budget).collect(0, 0, Memory())
    completions = [completion for group in drawn.groups for completion in group.completions]
    forced = sum(sum(completion.forced) for completion in completions)
    assert forced > 0, "no thought reached its budget"
    for completion in completions:
        assert all(
            completion.token_ids[n] == THINK_END and completion.logprobs[n] == 0
            for n, mark in enumerate(completion.forced)
            if mark
        )
    assert source.facts.forced == forced and f"{forced} forced tokens left out" in source.why()
    trained = sum(int((batch.weights_BT > 0).sum()) for batch in batches)
    graded = [
        c for group in drawn.groups for c, r in zip(group.completions, group.rewards, strict=True) if r is not None
    ]
    assert trained == sum(len(c.token_ids) - sum(c.forced) for c in graded)
    assert drawn.mismatch.largest < 1e-4, "forced tokens have no log-prob to compare"
    finishes = [output["finish"] for row in read_jsonl(tmp_path / "000000.jsonl") for output in row["outputs"]]
    assert finishes == [completion.finish for completion in completions]
