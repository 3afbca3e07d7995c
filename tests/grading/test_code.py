"""Tests written as code: the code under test never meets them, and what it gives is compared as plain values."""

import pytest

from loopline.grading.audit import CODE_EXPLOITS
from loopline.grading.code import blocks_of, sources_of
from loopline.grading.grade import Sample
from loopline.grading.graders import GraderSet
from loopline.tasks.config import TaskSetConfig
from loopline.tasks.files import read_table
from loopline.tasks.parts import rows_of
from loopline.tasks.task import Task, task_from_row
from tests.support import SHARED_DATA

HEAD = """import math

def half(x):
    return x / 2

def area(r: float) -> float:
    'The area of half a disc.'
"""
BODY = "    return half(math.pi * r * r)\n"
CHECK = """def check(candidate):
    assert abs(candidate(2) - 2 * math.pi) < 1e-6
    assert candidate(0) == half(0)
check(area)"""


@pytest.fixture(scope="module")
def pool():
    with GraderSet.from_defs({"code_tests": {"type": "code_tests"}}) as graders:
        yield graders


def task(tests, entry="", setup="", head="", name="t"):
    item = {"tests": tests, "entry": entry, "setup": setup, "head": head}
    messages = ({"role": "user", "content": "Write it."},)
    return Task(id=name, task_set="s", grader="code_tests", messages=messages, item=item)


def grade(pool, text, *given, **named):
    return pool.grade([Sample(task(*given, **named), text)])[0]


AREA = {"tests": [CHECK], "entry": "area", "setup": HEAD, "head": HEAD}


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        BODY.strip(),
        BODY.replace("    ", "\t"),
        f"```python\n{HEAD}{BODY}```",
        f"Here it is:\n\n~~~ Python3\n{HEAD}{BODY}~~~\nIt halves the disc.",
        f"````\n{BODY}````",
        f"```py\n{HEAD}{BODY}",
        "def area(r):\n    return half(math.pi * r ** 2)",
        f"First a wrong one:\n```\ndef area(r):\n    return 0\n```\nBetter:\n```\n{HEAD}{BODY}```",
        f"{BODY}\nThis multiplies pi by the square.",
        f"<think>half of a disc</think>{BODY}",
    ],
)
def test_a_body_or_a_function_in_any_fence_is_found(pool, text):
    found = grade(pool, text, **AREA)
    assert found.score == 1, (found, sources_of(Sample(task(**AREA), text)))


@pytest.mark.parametrize(
    "text", ["    return 0\n", "I cannot do that.", "    return half(r)", "```\n```", "    return None"]
)
def test_wrong_code_is_wrong(pool, text):
    assert grade(pool, text, **AREA).score == 0


TRIPLE = ["assert triple(1) == 3", "assert triple(-2) == -6, 'negative'", "assert set(triple([1])) == {1}"]


def test_assertions_are_counted_one_by_one(pool):
    found = grade(pool, "def triple(x):\n    return x * 3", TRIPLE)
    assert found.score == 1 and found.steps == (1.0, 1.0, 1.0)
    found = grade(pool, "def triple(x):\n    return [1, 1] if x == [1] else abs(x) * 3", TRIPLE)
    assert (
        found.score == 0
        and found.steps == (1.0, 0.0, 1.0)
        and "2 of 3 tests pass; test 1: AssertionError" in found.evidence
    )


@pytest.mark.parametrize("name", sorted(CODE_EXPLOITS))
def test_exploits_gain_nothing(pool, name):
    source = CODE_EXPLOITS[name].format(entry="triple")
    assert grade(pool, source, TRIPLE).score == 0
    assert grade(pool, f"```python\n{source}\n```", [CHECK], entry="area", setup=HEAD).score == 0


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    def __getattribute__(self, name): return lambda *a: True\n"
        "    def __eq__(self, other): return True\ndef triple(x): return A()",
        """def triple(x):
    import sys
    for module in list(sys.modules.values()):
        if hasattr(module, 'run_tests'):
            module.run_tests = lambda *a: {'calls': [], 'pending': False, 'errors': [], 'broken': ''}
    return 0""",
        "def answer(*a):\n    return ['l']\ndef encode(*a):\n    return True\ndef triple(x):\n    return 0",
        "import sys\nmain = sys.modules['__main__']\nmain.encode = lambda *a: True\ndef triple(x):\n    return 0",
        "def triple(x):\n    raise ImportError('make it ungradable')",
        "def triple(x):\n    raise AssertionError",
        "def triple(x):\n    while True:\n        pass",
    ],
)
def test_code_that_aims_at_the_driver_is_still_wrong(pool, source):
    assert grade(pool, source, TRIPLE).score == 0


def test_calls_may_depend_on_calls_before_them(pool):
    tests = [
        "s = 'abc'\nfor _ in range(3):\n    s = turn(s)\nassert s == turn(turn(turn('abc')))",
        "assert turn(turn('xy')) == 'xy'",
    ]
    assert grade(pool, "def turn(s):\n    return s[1:] + s[:1]", tests).score == 1
    assert grade(pool, "def turn(s):\n    return s + 'x'", tests).score == 0


def test_objects_of_the_code_stay_on_its_side_and_may_be_handed_back(pool):
    source = """class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b
    def total(self):
        return self.a + self.b
def longest(pairs):
    return max(p.b - p.a for p in pairs)"""
    tests = [
        "assert longest([Pair(1, 5), Pair(2, 3)]) == 4",
        "p = Pair(1, 2)\np.a = 7\nassert p.total() == 9 and p.a == 7",
    ]
    assert grade(pool, source, tests).score == 1
    found = grade(
        pool, "class Yes:\n    def __eq__(self, o): return True\ndef longest(p): return Yes()\nPair = tuple", tests[:1]
    )
    assert found.score == 0


def test_plain_values_of_many_kinds_cross(pool):
    source = """import collections
def give(x):
    return {'s': {1, 2}, 't': (1,), 'd': collections.OrderedDict(a=1), 'c': collections.Counter('aab'),
            'q': collections.deque([1]), 'b': b'x', 'z': 1j, 'n': None, 'f': float('inf'), 'i': 2**100, 'y': True}[x]"""
    tests = [
        "assert give('s') == {2, 1} and give('t') == (1,) and give('d') == {'a': 1} and give('c') == {'a': 2, 'b': 1}",
        "assert give('q') == [1] and give('b') == b'x' and give('z') == 1j and give('n') is None and give('y') is True",
        "assert give('f') == float('inf') and give('i') == 2**100",
        "try:\n    give('?')\n    assert False\nexcept KeyError:\n    pass",
    ]
    found = grade(pool, source, tests)
    assert found.score == 1, found


@pytest.mark.parametrize(
    ("tests", "setup", "why"),
    [
        (["assert triple(1) == 3"], "import nowhere", "No module named 'nowhere'"),
        (["import nowhere\nassert triple(1) == 3"], "", "No module named 'nowhere'"),
        (["assert 1 == 1"], "", "never call the code"),
        (["assert triple(1) =="], "", "SyntaxError"),
        (["while True: pass"], "", "time limit"),
    ],
)
def test_tests_that_cannot_be_run_grade_nobody(pool, tests, setup, why):
    found = grade(pool, "def triple(x):\n    return 3 * x", tests, "triple", setup)
    assert found.score is None and why in found.evidence


def test_a_syntax_error_is_no_attempt_at_the_sandbox(pool):
    assert "hack_open" not in grade(pool, "def triple(x:\n return", TRIPLE).flags


def test_fenced_blocks():
    assert blocks_of("a\n```python\nb\n~~~\n```\nc\n~~~~\nd\n~~~~\n```\ne") == ["b\n~~~", "d", "e"]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data is not here")
def test_the_canonical_solutions_of_humaneval_are_164_of_164(pool):
    table = read_table(SHARED_DATA / "human-eval" / "HumanEval.jsonl.gz")
    _, rows = rows_of("h", table, TaskSetConfig(file="HumanEval.jsonl.gz"))
    tasks = [task_from_row({**row, "task_set": "h", "grader": "code_tests"}) for row in rows]
    samples = [
        Sample(task, text) for task in tasks for text in (task.answer, task.responses[0]["messages"][0]["content"])
    ]
    assert sum(found.score for found in pool.grade(samples)) == 2 * 164
    assert sum(found.score for found in pool.grade([Sample(task, "    return True") for task in tasks])) <= 3
