"""Harness search on a scripted policy with known faults: it finds what mends them, resumes, and keeps its files."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from loopline.agents.evaluation import run_tasks, summarize
from loopline.agents.proposer import Candidate, best_of, propose, propose_by_command
from loopline.agents.search import dominates, frontier, search
from loopline.attempts.config import HarnessConfig
from loopline.attempts.scripted import ScriptedEngine
from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl
from loopline.chat.forms.form import Call
from loopline.chat.parser import OWN
from loopline.chat.tokenizer import Tokenizer
from loopline.inference.engine import Sampling
from tests.environments import world

FIRST = HarnessConfig(max_turns=3, max_context_tokens=4096)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return world.tokenizer(tmp_path_factory.mktemp("tokenizer"))


class Clumsy:
    """Reads well and adds well, but forgets a brace in calls about red things and searches one thing per turn."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.engine = ScriptedEngine(tokenizer, lambda prompt: self.say(tokenizer.decode(prompt)))
        self.evaluated: list[HarnessConfig] = []

    def say(self, seen: str) -> str:
        question = seen.split("<|user|>")[1].split("<|assistant|>")[0]
        named = [name for name in sorted(world.THINGS) if name in question]
        known = [name for name in named if f"The {name} costs" in seen]
        if len(known) == len(named):
            return str(sum(int(re.search(rf"The {name} costs (\d+)", seen)[1]) for name in named))  # type: ignore[index]
        wanted = next(name for name in named if name not in known)
        call = OWN.write([Call("search", {"query": wanted})])
        return call.replace("}}", "}") if "red" in wanted else call

    def evaluate(self, config: HarnessConfig) -> list[dict]:
        self.evaluated.append(config)
        return run_tasks(
            config, self.engine, world.environment(), world.tasks(), Sampling(max_new_tokens=200, temperature=0)
        )


def test_the_search_finds_what_mends_the_policy(tmp_path: Path, tokenizer: Tokenizer) -> None:
    policy = Clumsy(tokenizer)
    candidates = search(tmp_path, FIRST, policy.evaluate, propose, evaluations=8)
    assert candidates[0].score < 0.6 and best_of(candidates).score == 1
    assert candidates[0].config == FIRST
    assert len({str(candidate.config) for candidate in candidates}) == len(candidates)
    for candidate in candidates:
        assert {path.name for path in candidate.path.iterdir()} == {"harness.json", "search.json", "traces.jsonl"}
        found = read_json(candidate.path / "search.json")
        assert found["hypothesis"] and found["n"] == len(world.tasks()) and found["low"] <= found["score"]
        assert len(read_jsonl(candidate.path / "traces.jsonl")) == len(world.tasks())
    mended = next(candidate for candidate in candidates if candidate.score == 1)
    against = read_json(mended.path / "search.json")["against_parent"]
    assert (against["a"], against["b"]) == (mended.name, mended.parent) and against["difference"] > 0
    found = read_json(tmp_path / "frontier.json")
    assert found["winner"] == best_of(candidates).name and found["winner"] in found["frontier"]


def test_a_killed_search_goes_on_where_it_stopped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = search(tmp_path / "whole", FIRST, Clumsy(tokenizer).evaluate, propose, evaluations=6)
    policy = Clumsy(tokenizer)

    def dies(config: HarnessConfig) -> list[dict]:
        if len(policy.evaluated) == 2:
            raise KeyboardInterrupt
        return policy.evaluate(config)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", FIRST, dies, propose, evaluations=6)
    half = tmp_path / "cut" / "candidates" / "02-half"
    half.mkdir()
    (half / "harness.json").write_text("{}")
    resumed = Clumsy(tokenizer)
    candidates = search(tmp_path / "cut", FIRST, resumed.evaluate, propose, evaluations=6)
    assert len(resumed.evaluated) == len(whole) - 2
    assert [c.name for c in candidates] == [c.name for c in whole]
    for one, other in zip(candidates, whole, strict=True):
        for name in ("harness.json", "search.json", "traces.jsonl"):
            assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


def test_mechanisms_without_a_symptom_are_not_tried(tmp_path: Path, tokenizer: Tokenizer) -> None:
    candidates = search(tmp_path, FIRST, Clumsy(tokenizer).evaluate, propose, evaluations=20)
    tried = {candidate.mechanism for candidate in candidates}
    assert "repair-calls" in tried and not tried & {"route-tools", "calculate", "guard-loops", "prune-results"}
    assert len(candidates) < 20


def test_traces_show_symptoms_a_score_hides(tokenizer: Tokenizer) -> None:
    rows = Clumsy(tokenizer).evaluate(FIRST)
    broken = [row for row in rows if "malformed_call" in row["symptoms"]]
    assert broken and all("red" in row["question"] for row in broken)
    found = summarize(rows)
    assert found["symptoms"]["malformed_call"] == pytest.approx(len(broken) / len(rows), abs=1e-4)
    assert found["tokens"] > 0 and found["ungradable"] == 0


def candidate(name: str, score: float, tokens: float) -> Candidate:
    return Candidate(name, FIRST, None, "m", score, tokens, Path("."))


def test_the_frontier_holds_exactly_what_nothing_beats() -> None:
    points = [candidate("a", 0.5, 100), candidate("b", 0.9, 300), candidate("c", 0.9, 200), candidate("d", 0.4, 150)]
    found = frontier(points)
    assert found["frontier"] == ["a", "c"] and found["winner"] == "c" and found["first"] == "a"
    assert not dominates(points[0], points[0])


def proposer(path: Path, body: str) -> Sequence[str]:
    script = path / "proposer.py"
    script.write_text(f"import json\n{body}\n")
    return [sys.executable, str(script)]


def test_an_outside_program_can_propose(tmp_path: Path, tokenizer: Tokenizer) -> None:
    body = (
        "import pathlib\n"
        "done = sorted(pathlib.Path('candidates').iterdir())\n"
        "text = (done[-1] / 'traces.jsonl').read_text()\n"
        "if len(done) == 1 and 'malformed_call' in text:\n"
        "    value = {'name': 'Mend calls!', 'harness': {'repair_malformed': True}, 'hypothesis': 'broken calls'}\n"
        "    pathlib.Path('proposal.json').write_text(json.dumps(value))"
    )
    command, workspace = proposer(tmp_path, body), tmp_path / "work"
    workspace.mkdir()
    candidates = search(
        workspace,
        FIRST,
        Clumsy(tokenizer).evaluate,
        lambda known: propose_by_command(command, workspace, known, 60),
        evaluations=5,
    )
    assert [c.name for c in candidates] == ["00-first", "01-mend-calls"]
    assert candidates[1].config == FIRST.model_copy(update={"repair_malformed": True})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise SystemExit('no idea')", "ended with status 1: no idea"),
        ("open('proposal.json', 'w').write('{}')", "is not a proposal"),
        ("json.dump({'name': 'x', 'harness': {'wings': 2}, 'hypothesis': ''}, open('proposal.json', 'w'))", "wings"),
        ("json.dump({'name': 'x', 'harness': {}, 'hypothesis': ''}, open('proposal.json', 'w'))", "evaluated before"),
        ("import time; time.sleep(30)", "did not finish"),
    ],
)
def test_bad_proposers_are_refused(tmp_path: Path, body: str, says: str) -> None:
    command = proposer(tmp_path, body)
    with pytest.raises(UserError, match="Fix: ") as caught:
        propose_by_command(command, tmp_path, [candidate("00-first", 0.1, 1)], timeout_s=1)
    assert says in str(caught.value)
