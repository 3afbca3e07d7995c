"""Change the code that decides, one place at a time, and see whether a test notices.

    python benchmarks/mutation.py                       # a sample of every module's mutants, about half an hour
    python benchmarks/mutation.py --only evaluation/statistics --all
    python benchmarks/mutation.py --quick

Mutants: a comparison moved over its boundary or turned round, an arithmetic operator, a number, `and` for `or`, a
condition negated, True for False, min for max. Annotations, docstrings, decorators and what a `raise` says are left
alone. Each module is judged by the tests that mirror it: a mutant is killed when one fails or they run four times as
long as without it. One process imports the heavy libraries once and forks for every mutant; the child gives the mutated
source to the import system and runs pytest. Not covered: mutants that no single change makes, and code that runs in
processes of its own.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import common

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "loopline"
RL_TESTS = tuple(f"tests/rl/test_{name}.py" for name in ("objective", "properties_policy", "properties_kl", "ppo"))
MODULES: dict[str, tuple[str, ...]] = {
    "release/choose": ("tests/release/test_choose.py",),
    "release/decide": ("tests/release/test_decide.py",),
    "release/power": ("tests/release/test_power.py",),
    "evaluation/statistics": ("tests/evaluation/test_statistics.py",),
    "evaluation/power": ("tests/evaluation/test_power.py",),
    "evaluation/compare": ("tests/evaluation/test_compare.py",),
    "grading/audit": ("tests/grading/test_audit.py",),
    "rl/losses": RL_TESTS,
    "rl/advantage": ("tests/rl/test_advantage.py", "tests/rl/test_properties_advantage.py"),
    "training/objectives/preference": ("tests/training/objectives/test_preference.py",),
    "training/optimizer": ("tests/training/test_optimizer.py",),
    "corpus/dedup": ("tests/corpus/test_dedup.py",),
    "corpus/neardup": ("tests/corpus/test_neardup.py",),
    "corpus/pii": ("tests/corpus/test_pii.py",),
}
"""Module -> the tests that mirror it."""
PATIENCE = 4.0
"""A mutant whose tests take this many times as long, and ten seconds more, hangs."""
SAMPLE = 25
"""Mutants tried per module unless `--all`."""
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "floor": "ceil", "ceil": "floor"}


GUARDS = ("strict", "maxsize")
"""Arguments whose change no test of behaviour can see."""


class Mutant(NamedTuple):
    """One change of one module."""

    line: int
    before: str
    after: str
    source: str
    """The whole module with the change."""


def mutants(path: Path) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    tree = ast.parse(path.read_text())
    found = []
    for number, (node, change) in enumerate(_changes(tree)):
        altered = copy.deepcopy(tree)
        # The copy has its nodes in the same order, so the number finds the change again.
        target, apply = next(pair for index, pair in enumerate(_changes(altered)) if index == number)
        before = _shown(node)
        apply()
        del change
        found.append(Mutant(node.lineno, before, _shown(target), ast.unparse(ast.fix_missing_locations(altered))))
    return sorted(found, key=lambda one: one.line)


def _shown(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 90 else f"{text[:87]}..."


def _changes(tree: ast.Module) -> Iterator[tuple[ast.expr, Callable[[], None]]]:
    """(node, what changes it in place) for every mutant, always in the same order."""
    for node in _code(tree):
        if isinstance(node, ast.Compare):
            for place, operator in enumerate(node.ops):
                for other in COMPARISONS.get(type(operator), ()):
                    yield node, _setter(node.ops, place, other())
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            # Text has + and % of its own, and a type is joined with |.
            if not any(
                isinstance(side, ast.Constant | ast.JoinedStr) and _texty(side) for side in (node.left, node.right)
            ):
                yield node, _attribute(node, "op", OPERATORS[type(node.op)]())
        elif isinstance(node, ast.BoolOp):
            yield node, _attribute(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, _attribute(node, "value", not node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield (
                node,
                _attribute(node, "value", node.value + 1 if isinstance(node.value, int) else node.value * 2 + 0.1),
            )
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, _attribute(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, _attribute(node, "op", ast.UAdd())
        elif isinstance(node, ast.IfExp):
            yield node, _attribute(node, "test", ast.UnaryOp(ast.Not(), node.test))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
            yield node, _attribute(node.func, "id", NAMES[node.func.id])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in NAMES:
            yield node, _attribute(node.func, "attr", NAMES[node.func.attr])


def _texty(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _setter(items: list[ast.cmpop], place: int, value: ast.cmpop) -> Callable[[], None]:
    return lambda: items.__setitem__(place, value)


def _attribute(node: ast.AST, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(node, name, value)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that decides something, parents first."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "keywords" if _declares(node) else ""):
            continue
        for child in value if isinstance(value, list) else [value]:
            # `strict=` of a zip and the like guard against mistakes that no input makes.
            if isinstance(child, ast.keyword) and child.arg in GUARDS:
                continue
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr):
                yield from _code(child)


def _declares(node: ast.AST) -> bool:
    """Whether a call declares something, such as a field of a dataclass."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("field", "Field")


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module's mutated source to the import system."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self, origin=str(self.path)) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self.path)
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def tests_pass(module: str, source: str | None, tests: Sequence[str], limit: float) -> tuple[bool | None, float]:
    """(whether the tests pass, or None after `limit` seconds; seconds), in a child process."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if source is not None:
            name = f"loopline.{module.replace('/', '.')}"
            sys.meta_path.insert(0, Mutated(name, SOURCE / f"{module}.py", source))
        import pytest

        code = 1
        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests]))
        finally:
            os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0, time.monotonic() - began
        if time.monotonic() - began > limit:
            # Its own group: a grader's worker may be running below it.
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, time.monotonic() - began
        time.sleep(0.02)


def judge(module: str, tests: Sequence[str], sample: int | None) -> dict[str, object]:
    """Try a module's mutants, `sample` of them at most."""
    everything = mutants(SOURCE / f"{module}.py")
    chosen = everything
    if sample is not None and len(everything) > sample:
        chosen = sorted(random.Random(module).sample(everything, sample), key=lambda one: one.line)
    passes, seconds = tests_pass(module, None, tests, 600)
    if not passes:
        print(f"{module}: its tests fail without any mutant: {' '.join(tests)}", flush=True)
        return {"mutants": len(everything), "tried": 0, "killed": 0, "hung": 0, "survivors": [], "tests": list(tests)}
    limit = PATIENCE * seconds + 10
    survivors, hung = [], 0
    for one in chosen:
        passes, _ = tests_pass(module, one.source, tests, limit)
        hung += passes is None
        if passes:
            survivors.append({"line": one.line, "before": one.before, "after": one.after})
            print(f"  {module}.py:{one.line} survived: {one.before}  ->  {one.after}", flush=True)
    killed = len(chosen) - len(survivors)
    print(f"{module}: {killed} of {len(chosen)} killed ({len(everything)} mutants, {hung} hung)", flush=True)
    return {
        "mutants": len(everything),
        "tried": len(chosen),
        "killed": killed,
        "hung": hung,
        "survivors": survivors,
        "tests": list(tests),
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", nargs="+", choices=sorted(MODULES), help="these modules alone; writes a result only to --out"
    )
    parser.add_argument("--all", action="store_true", help="every mutant instead of a sample")


def main() -> None:
    """Judge every module and write the result."""
    arguments = common.parse(__doc__ or "", _arguments)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    # Imported once here, not in every child; nothing of the project may be, or no mutant would be seen.
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401

    loaded = [name for name in sys.modules if name.split(".")[0] == "loopline" and name.count(".")]
    assert not loaded, f"imported too early: {loaded}"
    names = arguments.only or (["evaluation/power"] if arguments.quick else list(MODULES))
    sample = None if arguments.all else 4 if arguments.quick else SAMPLE
    modules = {name: judge(name, MODULES[name], sample) for name in names}
    tried = sum(int(str(row["tried"])) for row in modules.values())
    killed = sum(int(str(row["killed"])) for row in modules.values())
    print(f"killed {killed} of {tried} ({killed / max(tried, 1):.1%})")
    if not arguments.only or arguments.out:
        result = {"modules": modules, "tried": tried, "killed": killed, "share": round(killed / max(tried, 1), 4)}
        common.finish("mutation", result, arguments)


if __name__ == "__main__":
    main()
