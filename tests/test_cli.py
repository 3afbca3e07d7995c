"""The command line: quick, without torch, and plain about mistakes."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import loopline.pipeline
import loopline.recipe
import loopline.stages
from loopline import cli
from loopline.base.files import read_json
from loopline.stages import catalogue
from loopline.store.store import Store
from tests.support_line import CALLS, NUMBERS_NODES, install

COMMANDS = [
    [],
    ["run"],
    ["plan"],
    ["status"],
    ["why"],
    ["report"],
    ["serve"],
    ["chat"],
    ["chat-check"],
    ["compare"],
    ["loop"],
    ["loop", "traffic"],
    ["loop", "benchmarks"],
    ["stages"],
    ["schema"],
    ["verify"],
    ["export"],
    ["sft"],
    ["reward"],
    ["dpo"],
    ["grpo"],
    ["reject"],
    ["align"],
    ["distill"],
    ["quantize"],
    ["eval"],
]
LIGHT = """
import sys
from loopline.cli import main
for words in {commands!r}:
    sys.argv = ["loopline", *words]
    try:
        main()
    except SystemExit as ending:
        assert not ending.code, (words, ending.code)
    assert "torch" not in sys.modules, words
"""


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process: status, standard output, standard error."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["loopline", *map(str, words)])
        # A table is as wide as its terminal.
        monkeypatch.setenv("COLUMNS", "200")
        status = 0
        try:
            cli.main()
        except SystemExit as ending:
            status = ending.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The fake line in the real one's place, with a recipe; its run directory does not exist yet."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(loopline.recipe, "catalogue", catalogue)
    monkeypatch.setattr(loopline.stages, "catalogue", catalogue)
    monkeypatch.setattr(loopline.pipeline, "stop_on_signals", lambda: None)
    CALLS.clear()
    install("numbers")
    (tmp_path / "mine.yaml").write_text(
        "compute: {threads: 1}\nline: [numbers, trim, {walk: {steps: 6}}, {total: {}, inputs: {numbers: numbers}}]\n"
    )
    yield tmp_path / "mine.yaml", tmp_path / "run"
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


def one_paragraph(err):
    assert err.startswith("loopline: ") and err.count("\n") == 1 and "Fix: " in err
    assert "Traceback" not in err
    return err


def test_help_answers_within_half_a_second():
    def spent():
        # Of the processor, not of a clock on the wall: the machine may be busy with something else.
        times = resource.getrusage(resource.RUSAGE_CHILDREN)
        return times.ru_utime + times.ru_stime

    best = 10.0
    for _ in range(4):
        began = spent()
        done = subprocess.run([sys.executable, "-m", "loopline.cli", "--help"], capture_output=True, text=True)
        best = min(best, spent() - began)
        assert done.returncode == 0 and "verify" in done.stdout
    assert best < 0.5, f"--help took {best:.2f} s at best"


def test_help_and_every_look_at_the_line_need_no_torch():
    words = [[*command, "--help"] for command in COMMANDS] + [["stages"], ["stages", "--json"], ["schema"]]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(commands=words)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "-".join(words) or "loopline")
def test_every_command_has_a_help_that_says_what_it_does(command, words):
    status, out, err = command(*words, "--help")
    assert status == 0 and err == ""
    assert " ".join(["loopline", *words, "[OPTIONS]"]) in out
    assert len(out.splitlines()) > 5


def test_the_commands_tested_here_are_all_there_are():
    own = {(info.name or info.callback.__name__).replace("_", "-") for info in cli.app.registered_commands}
    loops = {info.name for info in cli.loop_app.registered_commands}
    assert own | {"loop"} == {words[0] for words in COMMANDS if words}
    assert loops == {words[1] for words in COMMANDS if len(words) == 2}


def test_stages_as_json_is_the_catalogue(command):
    status, out, _ = command("stages", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0 and set(rows) == set(catalogue())
    assert rows["evaluate"]["gives"] == "evaluation" and rows["evaluate"]["takes"]["checkpoint"] == "checkpoint"
    assert all(row["summary"] for row in rows.values())


def test_stages_as_a_table_names_every_kind(command):
    status, out, _ = command("stages")
    assert status == 0
    for name in catalogue():
        assert any(name in line.split() for line in out.splitlines()), name


def test_schema_is_json_with_every_section(command):
    status, out, _ = command("schema")
    assert status == 0 and {"name", "seed", "tasks", "line"} < set(json.loads(out)["properties"])


def test_a_run_from_plan_to_verify(command, fake):
    recipe, run_dir = fake
    here = ["--dir", run_dir]

    status, out, err = command("plan", recipe, *here, "--json")
    assert (status, err) == (0, "") and not run_dir.exists()
    needed = {"memory_bytes", "disk_bytes", "seconds"}
    rows = json.loads(out)
    assert all(row[key] is None for row in rows for key in needed)  # Nothing here trains a model.
    assert [{key: value for key, value in row.items() if key not in needed} for row in rows] == [
        {"name": "numbers", "kind": "numbers", "inputs": "", "action": "run", "why": "never ran before"},
        {"name": "trim", "kind": "trim", "inputs": "numbers", "action": "depends", "why": "after numbers"},
        {"name": "walk", "kind": "walk", "inputs": "trim", "action": "depends", "why": "after trim"},
        {
            "name": "total",
            "kind": "total",
            "inputs": "walk, numbers",
            "action": "depends",
            "why": "after numbers, walk",
        },
    ]

    status, out, err = command("run", recipe, *here)
    assert (status, out) == (0, "") and list(NUMBERS_NODES) == CALLS
    assert "[3/4] walk: sum " in err

    status, out, _ = command("status", *here, "--json")
    rows = json.loads(out)
    assert status == 0 and rows == read_json(run_dir / "run.json")["stages"]
    assert [row["state"] for row in rows] == ["done"] * 4
    for row in rows:
        assert read_json(run_dir / row["path"] / "artifact.json")["digest"] == row["digest"]

    status, out, _ = command("status", *here)
    assert status == 0 and all(row["name"] in out and row["digest"][:12] in out for row in rows)

    status, out, _ = command("plan", recipe, *here, "--set", "walk.stride=4", "--json")
    actions = {row["name"]: (row["action"], row["why"]) for row in json.loads(out)}
    assert actions["walk"] == ("run", "walk.stride changed from 1 to 4")
    assert actions["trim"] == ("reuse", "") and actions["total"][0] == "depends"

    CALLS.clear()
    assert command("run", recipe, *here, "--set", "walk.stride=4")[0] == 0
    assert CALLS == ["walk", "total"]
    assert command("why", "walk", *here)[1] == "walk (done): walk.stride changed from 1 to 4\n"
    assert command("why", "total", *here)[1] == "total (done): input walk changed its content\n"

    status, out, _ = command("verify", *here)
    assert (status, out) == (0, "6 artifacts, all as committed\n")
    walked = Store(run_dir).artifacts("walk")[0]
    content = bytearray((walked / "walk.json").read_bytes())
    content[0] ^= 1
    (walked / "walk.json").write_bytes(content)
    status, out, err = command("verify", *here)
    assert (status, out) == (2, "")
    assert walked.path.relative_to(run_dir).as_posix() in one_paragraph(err)


def test_seed_and_until_reach_the_run(command, fake):
    recipe, run_dir = fake
    assert command("plan", recipe, "--dir", run_dir, "--until", "trim", "--json")[1].count('"action"') == 2
    status, _, err = command("run", recipe, "--dir", run_dir, "--until", "nowhere")
    assert status == 2 and "no node 'nowhere'" in one_paragraph(err) and CALLS == []
    command("run", recipe, "--dir", run_dir)
    status, out, _ = command("plan", recipe, "--dir", run_dir, "--seed", 5, "--json")
    assert status == 0 and json.loads(out)[0]["why"].startswith("seed changed from ")


def test_a_failing_stage_keeps_its_traceback_and_a_mistake_has_none(command, fake, monkeypatch):
    recipe, run_dir = fake
    monkeypatch.setattr("tests.support_line.trim", None)
    with pytest.raises(TypeError):
        command("run", recipe, "--dir", run_dir)
    assert [row["state"] for row in read_json(run_dir / "run.json")["stages"]] == [
        "done",
        "failed",
        "pending",
        "pending",
    ]
    for words in (("status",), ("why", "trim")):
        assert "TypeError: " in command(*words, "--dir", run_dir)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nowhere"], "no recipe nowhere"),
        (["run", "bad.yaml"], "bad.yaml, line 1: unknown key walk.stepz. Fix: did you mean 'steps'?"),
        (["plan", "mine.yaml", "--set", "walk.steps=0"], "walk.steps: "),
        (["plan", "mine.yaml", "--set", "walk.steps"], "--set walk.steps: not of the form key=value"),
        (["plan", "torn.yaml"], "torn.yaml, line 2, column"),
        (["status", "--dir", "nothing"], "no run in nothing"),
        (["why", "walk", "--dir", "nothing"], "no run in nothing"),
        (["chat", "--dir", "nothing"], "no ref 'champion'"),
        (["serve", "--dir", "nothing"], "no ref 'champion'"),
        (["report", "--dir", "nothing"], "no run in nothing"),
        (["report", "--json", "--dir", "nothing"], "no run in nothing"),
        (["verify", "--dir", "nothing"], "no run in nothing"),
    ],
)
def test_mistakes_are_one_paragraph_on_standard_error(command, fake, monkeypatch, words, message):
    recipe, _ = fake
    monkeypatch.chdir(recipe.parent)
    Path("bad.yaml").write_text("line: [numbers, {walk: {stepz: 3}}]\n")
    Path("torn.yaml").write_text("line: [walk: {steps: 3\n")
    status, out, err = command(*words)
    assert (status, out) == (2, "")
    assert message in one_paragraph(err)
    assert CALLS == [] and not Path("nothing").exists()


def test_a_mistyped_command_or_option_is_refused(command):
    assert command("rnu")[0] == 2
    status, out, err = command("run", "--sett", "a=1")
    assert (status, out) == (2, "") and "--sett" in err
