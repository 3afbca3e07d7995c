"""Rows become tasks; a bad row is named by file, row and field."""

import json

import pytest

from loopline.base.errors import UserError
from loopline.tasks.task import load_tasks, task_from_row

ROW = {
    "id": "a-1",
    "task_set": "arithmetic",
    "part": "train",
    "messages": [{"role": "user", "content": "1+2=?"}],
    "answer": "3",
    "grader": "final_answer",
    "responses": [{"style": "direct", "messages": [{"role": "assistant", "content": "3"}]}],
    "difficulty": 2,
}


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_further_fields_become_the_item():
    task = task_from_row(ROW)
    assert task.item == {"difficulty": 2}
    assert task.as_item()["answer"] == "3" and task.as_item()["difficulty"] == 2
    assert task.prompt == "1+2=?"


def test_a_dumped_task_reads_back_the_same():
    task = task_from_row(ROW)
    assert task_from_row(task.model_dump()) == task


def test_task_sets_and_limit_per_task_set(tmp_path):
    rows = [{**ROW, "id": f"{task_set}-{n}", "task_set": task_set} for n in range(4) for task_set in ("a", "b", "c")]
    path = write(tmp_path / "t.jsonl", *rows)
    assert [task.id for task in load_tasks(path, sets=["a", "c"], limit=2)] == ["a-0", "c-0", "a-1", "c-1"]
    limited = load_tasks(path, ["a", "c"], limit=2, limit_by_set={"c": 1})
    assert [task.id for task in limited] == ["a-0", "c-0", "a-1"]
    assert len(load_tasks(path)) == 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": []}, "`messages` must be turns"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "`messages` must be turns"),
        ({"messages": [{"role": "user"}]}, "`messages` must be turns"),
        ({"messages": "hello"}, "'messages'"),
        ({"grader": None}, "'grader'"),
        ({"answer": 3}, "'answer'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, said):
    path = write(tmp_path / "t.jsonl", ROW, {**ROW, "id": "other", **change})
    with pytest.raises(UserError, match=f"t.jsonl, row 2.*{said}"):
        load_tasks(path)


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="row 2: the id 'a-1' is that of row 1"):
        load_tasks(write(tmp_path / "t.jsonl", ROW, ROW))
    with pytest.raises(UserError, match="row 1 is not a JSON object"):
        load_tasks(write(tmp_path / "t.jsonl", "[1]"))
    with pytest.raises(UserError, match="line 2: not JSON"):
        load_tasks(write(tmp_path / "t.jsonl", ROW, "{oops"))
    with pytest.raises(UserError, match="no tasks of the task set 'code'"):
        load_tasks(write(tmp_path / "t.jsonl", ROW), sets=["arithmetic", "code"])
    with pytest.raises(UserError, match="There is no file"):
        load_tasks(tmp_path / "missing.jsonl")


def test_conversations_use_a_responses_own_prompt():
    notes = [{"role": "system", "content": "Notes: x"}, {"role": "user", "content": "1+2=?"}]
    answer = [{"role": "assistant", "content": "3"}]
    task = task_from_row(
        {**ROW, "responses": [*ROW["responses"], {"style": "context", "prompt": notes, "messages": answer}]}
    )
    assert task.conversations("context") == [("context", notes, answer)]
    assert [prompt for _, prompt, _ in task.conversations()] == [ROW["messages"], notes]


def test_facts_go_before_the_question():
    task = task_from_row({**ROW, "facts": ["A is 1.", "B is 2."]}).with_facts()
    assert [m["role"] for m in task.messages] == ["system", "user"]
    assert task.messages[0]["content"] == "Notes: A is 1. B is 2."
    assert task_from_row(ROW).with_facts() == task_from_row(ROW)
