"""The stage `tasks`: parts that share no task, whatever they come from, in one artifact with its graders."""

import pytest
from pydantic import ValidationError

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json, write_jsonl
from loopline.store.artifact import Artifact, content_digest
from loopline.tasks.compare import apart, asked
from loopline.tasks.config import TasksConfig, TaskSetConfig
from loopline.tasks.stage import tasks
from loopline.tasks.task import load_tasks
from tests.support import make_context

PARTS = ("train", "dev", "heldout")


def rows(count, start=0):
    return [{"prompt": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(start, start + count)]


def run(path, sets, seed=0):
    """The stage on sets whose files lie in `path`, as the pipeline would hand them in."""
    config = TasksConfig.model_validate({"sets": sets})
    inputs = {}
    for name, one in config.sets.items():
        for field in ("file", "heldout_file", "dev_file", "grader_file"):
            given = getattr(one, field)
            if given is not None:
                inputs[f"sets.{name}.{field}"] = Artifact(path / given, "file", "file", "", "")
    context = make_context(path / "run", seed=seed, stage="tasks")
    tasks(config, inputs, context)
    return context.out


def prompts(out, part):
    return {task.prompt for task in load_tasks(out / f"{part}.jsonl")}


def test_a_file_is_divided_by_its_prompts_alone(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", rows(400))
    out = run(tmp_path, {"sums": {"file": "a.jsonl", "grader": "final_answer", "tags": ["reasoning"], "heldout": 0.2}})
    parts = {part: prompts(out, part) for part in PARTS}
    assert sum(map(len, parts.values())) == 400 and len(parts["heldout"]) > 50 and len(parts["dev"]) > 15
    entry = read_json(out / "sets.json")["sums"]
    assert entry["counts"] == {part: len(found) for part, found in parts.items()} and entry["answers"]
    assert entry["tags"] == ["reasoning"] and entry["grader"] == "final_answer"
    assert read_json(out / "graders.json") == {"final_answer": {"type": "final_answer"}}
    assert all(row["tags"] == ["reasoning"] for row in read_jsonl(out / "train.jsonl"))
    # More rows, in another order and with other spacing: every row stays where it was.
    more = [{**row, "prompt": row["prompt"].upper().replace(" ", "  ")} for row in rows(500)]
    write_jsonl(tmp_path / "a.jsonl", more[::-1])
    again = run(tmp_path / ".", {"sums": {"file": "a.jsonl", "grader": "final_answer", "heldout": 0.2}})
    for part, found in parts.items():
        assert {text.upper() for text in found} <= {" ".join(text.split()) for text in prompts(again, part)}


def test_a_heldout_file_that_repeats_training_tasks_is_refused_with_examples(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", rows(50))
    write_jsonl(tmp_path / "b.jsonl", [*rows(20, 100), {"prompt": "  what is 7 PLUS 7 ", "answer": "14"}])
    sets = {"sums": {"file": "a.jsonl", "heldout": "b.jsonl", "grader": "final_answer"}}
    with pytest.raises(UserError, match="The task set sums: 1 train tasks are asked .*'What is 7 plus 7"):
        run(tmp_path, sets)
    sets["sums"]["overlap"] = "drop"
    out = run(tmp_path, sets)
    assert read_json(out / "sets.json")["sums"]["left_out"] == 1
    assert "What is 7 plus 7?" not in prompts(out, "train") | prompts(out, "dev") and len(prompts(out, "heldout")) == 21


def test_no_set_trains_on_what_another_holds_out(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", rows(60))
    write_jsonl(tmp_path / "b.jsonl", rows(60))
    sets = {
        "ours": {"file": "a.jsonl", "grader": "final_answer", "heldout": 0.3},
        "exam": {"file": "b.jsonl", "grader": "final_answer", "heldout": 1.0},
    }
    out = run(tmp_path, sets)
    assert prompts(out, "train") == set() == prompts(out, "dev"), "all sixty are in the exam"
    assert read_json(out / "sets.json")["ours"]["left_out"] > 30


def test_generated_sets_carry_their_tags_documents_and_principles(tmp_path):
    sizes = {"train": 60, "heldout": 20}
    sets = {
        "sums": {"generator": "arithmetic", "sizes": sizes, "settings": {"max_terms": 3}, "tags": ["easy"]},
        "manners": {"generator": "safety", "sizes": sizes},
        "facts": {"generator": "lookup", "sizes": sizes},
    }
    out = run(tmp_path, sets)
    entries = read_json(out / "sets.json")
    assert all(entry["counts"] == {"train": 60, "dev": 20, "heldout": 20} for entry in entries.values())
    assert entries["sums"]["tags"] == ["reasoning", "easy"] and entries["facts"]["tags"] == ["tools"]
    assert entries["manners"]["row_tags"] == ["must_answer", "must_refuse"]
    assert read_json(out / "graders.json").keys() == {"final_answer", "refusal"}
    assert (out / "documents.jsonl").exists() and (out / "constitution.json").exists()
    refused = load_tasks(out / "heldout.jsonl", ["manners"], tags=["must_refuse"])
    assert refused and all(task.item["unsafe"] for task in refused)
    assert content_digest(run(tmp_path / "b", sets)) == content_digest(out)
    one = run(tmp_path / "c", {"sums": "arithmetic", "manners": sets["manners"]})
    assert read_json(one / "sets.json")["sums"]["counts"]["heldout"] == 450


def test_graders_are_files_definitions_or_names(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", rows(40))
    (tmp_path / "mine.py").write_text("def grade(sample, item):\n    return 1.0\n")
    write_json(tmp_path / "mine.json", {"grader": {"type": "final_answer"}})
    inline = {"type": "string_check", "operation": "eq", "input": "{{ sample.output_text }}", "reference": "1"}
    graders = {"a": "mine.py", "b": "mine.json", "c": inline, "d": "elsewhere", "e": "gsm8k"}
    sets = {
        name: {"file": "a.jsonl", "grader": grader, "template": f"{name}: {{prompt}}"}
        for name, grader in graders.items()
    }
    out = run(tmp_path, sets)
    assert read_json(out / "graders.json") == {
        "a": {"type": "python", "source": (tmp_path / "mine.py").read_text()},
        "b": {"type": "final_answer"},
        "c": inline,
        "gsm8k": {"type": "gsm8k"},
    }
    named = {task.task_set: task.grader for task in load_tasks(out / "train.jsonl")}
    assert named == {"a": "a", "b": "b", "c": "c", "d": "elsewhere", "e": "gsm8k"}
    with pytest.raises(UserError, match="The task set x names no grader"):
        run(tmp_path, {"x": {"file": "a.jsonl"}})
    (tmp_path / "mine.py").write_text("def grade(:\n")
    with pytest.raises(UserError, match="mine.py, line 1: not Python"):
        run(tmp_path, {"a": {"file": "a.jsonl", "grader": "mine.py"}})


def test_sizes_limits_and_tools(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", rows(300))
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    one = {"file": "a.jsonl", "grader": "final_answer", "limit": 200, "sizes": {"train": 7, "dev": 3}, "tools": [tool]}
    out = run(tmp_path, {"sums": one})
    assert len(load_tasks(out / "train.jsonl")) == 7 and len(load_tasks(out / "dev.jsonl")) == 3
    assert read_jsonl(out / "train.jsonl")[0]["tools"] == [tool]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of file, generator and package"),
        ({"file": "a", "generator": "code"}, "exactly one of file, generator and package"),
        ({"file": "a", "template": "Q:"}, "template must hold {prompt}"),
        ({"file": "a", "prompt": "p", "messages": "m"}, "either prompt or messages"),
        ({"generator": "code", "format": "math"}, "there is no file"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValidationError, match=message):
        TaskSetConfig.model_validate(settings)


def test_mistakes_name_the_set(tmp_path):
    with pytest.raises(UserError, match="There is no task set"):
        run(tmp_path, {})
    with pytest.raises(UserError, match="set x: settings.max_term: .*Fix: the generator code has the settings"):
        run(tmp_path, {"x": {"generator": "code", "settings": {"max_term": 3}}})
    with pytest.raises(UserError, match="no generator 'poetry'"):
        run(tmp_path, {"x": "poetry"})
    with pytest.raises(UserError, match="the package 'elsewhere:x' is not known"):
        run(tmp_path, {"x": {"package": "elsewhere:x"}})
    write_jsonl(tmp_path / "a.jsonl", rows(2))
    with pytest.raises(UserError, match="none of 2 rows falls into the held-out share"):
        run(tmp_path, {"x": {"file": "a.jsonl", "grader": "gsm8k", "heldout": 0.001}})


def test_what_is_the_same_task():
    def row(name, prompt, answer="1", **item):
        return {"id": name, "messages": [{"role": "user", "content": prompt}], "answer": answer, "item": item}

    heldout = [row("h1", "12+5-3=?"), row("h2", "Reverse text x.", "def f(x): return x[::-1]", tests=[])]
    train = [
        row("t1", "12 + 5 - 3 ="),
        row("t2", "12+5-3+1=?"),
        row("t3", "Reverse list x.", "def f(x): return x[::-1]", tests=[]),
        row("h2", "Another."),
        row("t4", "Other", "1"),
    ]
    kept, overlaps = apart(train, heldout)
    assert [one["id"] for one in kept] == ["t2", "t4"] and [one.other["id"] for one in overlaps] == ["h1", "h2", "h2"]
    assert asked(train[1]) == {"12 + 5 - 3 + 1"}
