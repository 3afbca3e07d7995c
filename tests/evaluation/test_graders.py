"""The stage `graders`: what the tasks name is audited and tried on the policy; a bad grader is refused in words."""

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json, write_jsonl
from loopline.evaluation.graders import graders, judge
from loopline.grading.config import GradersConfig
from loopline.grading.grade import Grade, Sample
from loopline.model.checkpoint import save_checkpoint
from loopline.store.artifact import content_digest
from loopline.tasks.generators.config import GeneratorConfig, TrainCounts
from loopline.tasks.generators.generate import write_tasks
from loopline.tasks.task import Task
from tests.support import make_artifact, make_context
from tests.support_graders import DEFINITIONS
from tests.support_model import tiny_model, tiny_tokenizer

COUNTS = TrainCounts(arithmetic=30, word_problem=30, ordering=30, code=30, format=30, safety=40, lookup=30)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    write_tasks(GeneratorConfig(train=COUNTS, heldout=12), 1, root / "tasks")
    tokenizer = tiny_tokenizer(root / "tokenizer")
    save_checkpoint(
        tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=512),
        root / "tokenizer",
        root / "checkpoint",
    )
    return {
        "tasks": make_artifact(root / "tasks", stage="tasks"),
        "policy": make_artifact(root / "checkpoint", stage="sft"),
    }


def without_policy(inputs):
    return {"tasks": inputs["tasks"]}


def test_graders_are_audited_and_written(tmp_path, inputs):
    contexts = [make_context(tmp_path / name, seed=3) for name in ("a", "b")]
    for context in contexts:
        graders(GradersConfig(audit_tasks=8, definitions=DEFINITIONS), without_policy(inputs), context)
    out = contexts[0].out
    audit = read_json(out / "audit.json")
    assert read_json(out / "graders.json") == DEFINITIONS
    assert {name for name, entry in audit.items() if not entry["passed"]} == {"naive_contains"}
    assert all(set(row) >= {"probe", "n", "mean", "max", "pays"} for e in audit.values() for row in e["probes"])
    assert content_digest(contexts[0].out) == content_digest(contexts[1].out)
    assert not (out / "probe.json").exists()


def test_only_what_the_tasks_name_is_there_unless_more_is_asked_for(tmp_path, inputs):
    context = make_context(tmp_path)
    graders(GradersConfig(audit_tasks=4), without_policy(inputs), context)
    assert read_json(context.out / "graders.json").keys() == {"final_answer", "code_tests", "format_check", "refusal"}


def test_a_required_grader_that_can_be_exploited_stops_the_line(tmp_path, inputs, capsys):
    context = make_context(tmp_path)
    config = GradersConfig(definitions=DEFINITIONS, required=("naive_contains",), audit_tasks=8)
    with pytest.raises(UserError, match="'naive_contains' fails its audit.*: answer_spam pays"):
        graders(config, without_policy(inputs), context)
    assert not (context.out / "graders.json").exists()
    graders(config.model_copy(update={"force": True}), without_policy(inputs), context)
    assert "Going on, as --force-grader says" in capsys.readouterr().err
    entry = read_json(context.out / "audit.json")["naive_contains"]
    assert entry["forced"] and not entry["passed"]
    with pytest.raises(UserError, match="`required` names the grader 'nobody'"):
        graders(GradersConfig(required=("nobody",)), without_policy(inputs), make_context(tmp_path / "other"))


def test_definitions_must_be_there_once(tmp_path, inputs):
    row = {"id": "t", "task_set": "mine", "messages": [{"role": "user", "content": "?"}], "grader": "elsewhere"}
    write_jsonl(tmp_path / "tasks" / "train.jsonl", [row])
    own = {"tasks": make_artifact(tmp_path / "tasks", stage="tasks")}
    with pytest.raises(UserError, match="The task set mine names the grader 'elsewhere', which is neither"):
        graders(GradersConfig(), own, make_context(tmp_path / "b"))
    write_json(tmp_path / "tasks" / "graders.json", {"elsewhere": {"type": "steps"}})
    with pytest.raises(UserError, match="Two graders are called 'elsewhere'"):
        graders(GradersConfig(definitions={"elsewhere": {"type": "refusal"}}), own, make_context(tmp_path / "a"))
    (tmp_path / "tasks" / "graders.json").unlink()
    never = {"elsewhere": {"type": "python", "source": "def grade(sample, item):\n    return 0.0"}}
    graders(GradersConfig(definitions=never), own, make_context(tmp_path / "c"))


def test_the_policy_answers_a_few_prompts_of_every_grader(tmp_path, inputs, capsys):
    context = make_context(tmp_path)
    probe = {"prompts": 8, "samples": 2, "max_new_tokens": 8}
    graders(GradersConfig.model_validate({"audit_tasks": 4, "probe": probe}), inputs, context)
    probes = read_json(context.out / "probe.json")
    assert probes.keys() == {"final_answer", "code_tests", "format_check", "refusal"}
    assert all(entry["n"] == 4 and entry["verdict"] for entry in probes.values()), "it is untrained"
    assert len(read_jsonl(context.out / "probe.jsonl")) == 16 and "answers tried" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"prompts are too long: the model takes 512 tokens"):
        graders(
            GradersConfig.model_validate({"audit_tasks": 4, "probe": {**probe, "max_new_tokens": 511}}),
            inputs, make_context(tmp_path / "long"),
        )  # fmt: skip


def judged(*scores, paid=True, finish="stop", force=False):
    task = Task(id="t", task_set="s", grader="g", messages=({"role": "user", "content": "?"},))
    samples = [Sample(task, "an answer", finish) for _ in scores]
    grades = [Grade(score, evidence="it broke" if score is None else "") for score in scores]
    return judge("g", samples, grades, paid, GradersConfig(force=force))


def test_what_a_probe_means():
    assert judged(1.0, 0.0) == ""
    with pytest.raises(UserError, match=r"failed on 2 of 2 answers of the policy.*it broke"):
        judged(None, None)
    assert judged(None, None, force=True).startswith("The grader 'g' failed on 2 of 2")
    assert judged(None, 1.0) == "The grader 'g' failed on 1 of 2 answers of the policy; those count neither way."
    assert "the policy is too weak" in judged(0.0, 0.0)
    with pytest.raises(UserError, match=r"never pays: it gave 0 to all 2 answers of the policy, and there are no ref"):
        judged(0.0, 0.0, paid=None)
    assert "cut off at 256 tokens" in judged(0.0, 0.0, paid=None, finish="length")
    assert "earned 0.50" in judged(0.5, 0.5)
