"""Accuracy against tokens: every budget asks every task once, and what the engine forced is counted apart."""

from loopline.base.files import read_json
from loopline.chat.tokenizer import END, THINK, THINK_END
from loopline.evaluation.config import EvaluateConfig
from loopline.evaluation.curve import budget_curve
from loopline.evaluation.stage import evaluate
from loopline.inference.engine import Completion
from loopline.store.artifact import content_digest
from tests.support import make_context
from tests.support_model import tiny_tokenizer


class Thinker:
    """Knows the answer after so many tokens of thinking, and says something else before."""

    def __init__(self, tokenizer, tasks, needed):
        self.tokenizer, self.needed, self.seeds = tokenizer, needed, []
        self.answers = {tuple(self.prompt(task)): task.answer for task in tasks}

    def prompt(self, task):
        return self.tokenizer.render(list(task.with_facts().messages), add_generation_prompt=True)

    def generate(self, prompts, sampling, seeds=None, finished=None):
        self.seeds.append((sampling.thinking_budget, list(seeds)))
        groups = []
        for prompt in prompts:
            budget = sampling.thinking_budget
            thought = self.needed if budget is None else min(budget, self.needed)
            text = self.answers[tuple(prompt)] if thought == self.needed else "no"
            answer = self.tokenizer.encode(text)
            ids = [THINK, *[20] * thought, THINK_END, *answer, END]
            forced = [False] * len(ids)
            forced[1 + thought] = thought < self.needed
            groups.append([Completion(ids, [0.0] * len(ids), "stop", 0, forced=forced)])
        return groups


def test_the_curve_rises_where_thinking_is_long_enough(tasks, graders, tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    chosen = [task for task in tasks if task.task_set == "arithmetic"][:6]
    engine = Thinker(tokenizer, chosen, needed=5)
    config = EvaluateConfig(modes=("sampled",))
    rows = budget_curve(engine, chosen, graders, [0, 3, 5, None], config, 4, "sft")
    assert [row["budget"] for row in rows] == [0, 3, 5, None]
    assert [row["value"] for row in rows] == [0.0, 0.0, 1.0, 1.0]
    assert [row["forced"] for row in rows] == [1.0, 1.0, 0.0, 0.0]
    tokens = [row["tokens"] for row in rows]
    assert tokens[2] == tokens[3] and tokens[0] < tokens[1]
    assert all(
        row["n"] == 6 and row["checkpoint"] == "sft" and row["low"] <= row["value"] <= row["high"] for row in rows
    )
    # Every budget asks with the same seeds.
    assert len({tuple(seeds) for _, seeds in engine.seeds}) == 1


def test_the_stage_writes_a_curve_when_asked_and_the_same_one_again(tmp_path, evaluated):
    config = EvaluateConfig(n=4, max_new_tokens=12, tasks=("arithmetic", "code"), thinking_budgets=(4, 0))
    contexts = [make_context(tmp_path / name, seed=5) for name in ("a", "b", "c")]
    for context in contexts[:2]:
        evaluate(config, evaluated, context)
    evaluate(config.model_copy(update={"thinking_budgets": ()}), evaluated, contexts[2])
    rows = read_json(contexts[0].out / "curve.json")["curve"]
    assert [(row["metric"], row["budget"]) for row in rows] == [
        (f"{mode} pass@1", budget) for mode in ("sampled", "greedy") for budget in (0, 4, None)
    ]
    assert all(row["n"] == 4 and 1 <= row["tokens"] <= 12 for row in rows), "only the reasoning task sets are asked"
    assert content_digest(contexts[0].out) == content_digest(contexts[1].out)
    assert not (contexts[2].out / "curve.json").exists()
    for name in ("items.jsonl", "summary.json"):
        assert (contexts[0].out / name).read_bytes() == (contexts[2].out / name).read_bytes()
