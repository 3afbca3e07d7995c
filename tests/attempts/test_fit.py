"""Prompts that leave no room for an answer are refused with the fix, or left out."""

import pytest

from loopline.attempts.fit import that_fit
from loopline.base.errors import UserError
from loopline.tasks.task import Task

TASKS = [
    Task(id=f"t{n}", task_set="s", grader="g", messages=({"role": "user", "content": f"How much is {n} and {n + 7}?"},))
    for n in range(12)
]


class Words:
    """Stands in for a tokenizer: a token per word."""

    def render(self, messages, add_generation_prompt=False):
        return messages[-1]["content"].split()


def test_prompts_that_leave_no_room_are_refused_or_left_out():
    long = TASKS[1].model_copy(update={"id": "long", "messages": ({"role": "user", "content": "word " * 30},)})
    assert that_fit(Words(), [*TASKS, long], 20, 50) == [*TASKS, long]
    with pytest.raises(UserError, match=r"1 of 13 prompts are too long: .* 49 tokens.*long, has 30.*max_new_tokens=19"):
        that_fit(Words(), [*TASKS, long], 20, 49)
    assert that_fit(Words(), [*TASKS, long], 20, 49, "drop") == TASKS
    with pytest.raises(UserError, match="No prompt leaves room"):
        that_fit(Words(), [long], 20, 49, "drop")
    assert that_fit(Words(), [long], 20, None) == [long]
