"""Tests written as code, run without the code under test in reach. This file's text runs in the sandbox, twice over.

One process holds the tests and never sees the code: every call of it is recorded, and answered with what a second
process, which holds the code and never sees the tests, gave for it. Answers cross as plain values, so an object that
claims to equal everything stays behind. `loopline.grading.code` goes between the two until no call is unanswered.

It imports the standard library only and nothing of the project. Not covered: arguments that the code changes in place.
"""

from __future__ import annotations

import ast
import builtins
import collections
import random
import sys
from typing import Any

RAISED = (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, AttributeError, OverflowError, LookupError)
"""Exceptions of the code that tests may expect; every other arrives as a plain RuntimeError."""
objects: list[Any] = []
"""The code's side: objects that are no plain values, known to the tests by number."""
module = type(sys)("solution")
"""The code's side: where the code is."""


class Unknown(Exception):
    """A value that depends on a call nobody has answered yet."""


class Remote:
    """The tests' side of an object that only the code's process holds."""

    def __init__(self, number: int, tests: Tests) -> None:
        self.__dict__.update(number=number, tests=tests)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.tests.call("@get", (self, name), {})

    def __setattr__(self, name: str, value: Any) -> None:
        self.tests.call("@set", (self, name, value), {})

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.tests.call("@call", (self, *arguments), named)

    def refuse(self, *others: Any) -> Any:
        raise TypeError("the code gave an object, which is not a builtin value")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = __contains__ = refuse
    __hash__ = None  # type: ignore[assignment]


class Pending:
    """Stands for the answer to a call that is not known yet; whatever is done with it gives another one."""

    def more(self, *arguments: Any, **named: Any) -> Pending:
        return self

    def __getattr__(self, name: str) -> Pending:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        return

    def __iter__(self) -> Any:
        raise Unknown

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        raise Unknown

    def __hash__(self) -> int:
        raise Unknown

    __call__ = __getitem__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = more
    __truediv__ = __rtruediv__ = __floordiv__ = __pow__ = __neg__ = __abs__ = __round__ = more
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = more  # type: ignore[assignment]


def encode(value: Any, number_of: Any) -> Any:
    """A value as tagged lists of plain values; objects by `number_of`."""
    if value is None or isinstance(value, bool):
        return value
    # Of subclasses only the plain value crosses.
    plain: Any
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain.__add__(value, plain())
    if isinstance(value, collections.deque):
        value = list(value)
    kind: Any
    for kind, tag in ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "s")):
        if isinstance(value, kind):
            return [tag, *(encode(item, number_of) for item in kind.__iter__(value))]
    if isinstance(value, dict):
        return ["d", *([encode(key, number_of), encode(item, number_of)] for key, item in dict.items(value))]
    if isinstance(value, bytes):
        return ["b", value.hex()]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    return ["o", number_of(value)]


def decode(value: Any, object_of: Any) -> Any:
    """What `encode` wrote."""
    if not isinstance(value, list):
        return value
    tag, *items = value
    if tag == "o":
        return object_of(items[0])
    if tag == "b":
        return bytes.fromhex(items[0])
    if tag == "c":
        return complex(*items)
    if tag == "d":
        return {decode(key, object_of): decode(item, object_of) for key, item in items}
    decoded = [decode(item, object_of) for item in items]
    return decoded if tag == "l" else tuple(decoded) if tag == "t" else set(decoded)


# --- the code's side


def load(texts: list[str]) -> None:
    """Run the first of the texts that compiles; raises the error of the first when none does."""
    first: Exception | None = None
    for text in texts:
        try:
            code = compile(text, "<solution>", "exec")
        except (SyntaxError, ValueError) as error:
            first = first or error
            continue
        # A module of its own: the code may call its functions what it likes. dataclasses look their module up by name.
        sys.modules["solution"] = module
        exec(code, module.__dict__)
        return
    raise first or ValueError("there is no code")


def answer(name: str, arguments: list[Any], named: Any) -> Any:
    """The encoded answer to one call."""
    values = decode(arguments, objects.__getitem__)
    options = decode(named, objects.__getitem__)
    if name == "@get":
        result = getattr(*values)
    elif name == "@set":
        setattr(*values)
        result = None
    elif name == "@call":
        result = values[0](*values[1:], **options)
    else:
        result = module.__dict__[name](*values, **options)

    def number_of(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    return encode(result, number_of)


# --- the tests' side


class Tests:
    """The calls that a run of the tests makes, answered as far as answers are known."""

    def __init__(self, known: list[Any]) -> None:
        self.known = known
        self.calls: list[Any] = []
        self.pending = False
        """[[call, [status, value]], ...] in the order of the calls; every call of this run; whether one is open."""

    def call(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        def number_of(value: Any) -> int:
            if isinstance(value, Remote):
                number: int = value.__dict__["number"]
                return number
            if isinstance(value, Pending):
                self.pending = True
                raise Unknown
            raise TypeError(f"the tests pass a {type(value).__name__}, which cannot be handed over")

        call = [name, encode(list(arguments), number_of), encode(named, number_of)]
        place = len(self.calls)
        self.calls.append(call)
        if self.pending or place >= len(self.known) or self.known[place][0] != call:
            self.pending = True
            return Pending()
        status, value = self.known[place][1]
        if status == "ok":
            return decode(value, lambda number: Remote(number, self))
        kind, _, text = str(value).partition(": ")
        raised = getattr(builtins, kind, None)
        raise raised(text) if raised in RAISED else RuntimeError(str(value))


class Quiet(ast.NodeTransformer):
    """Lets every assertion pass, so that the calls behind it are seen."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [ast.Pass()])
        return ast.copy_location(ast.Try([ast.Expr(node.test)], [handler], [], []), node)


def free_names(trees: list[ast.Module]) -> list[str]:
    """Names that are used and defined nowhere: those of the code under test."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    bound |= {(one.asname or one.name).partition(".")[0] for node in imports for one in node.names}
    used = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    return [name for name in dict.fromkeys(used) if name not in bound and not hasattr(builtins, name)]


def run_tests(setup: str, tests: list[str], entry: str, known: list[Any], quiet: bool) -> dict[str, Any]:
    """Run the tests against known answers.

    {"calls": every call made, "pending": whether one had no answer, "errors": one text per test, "" for a pass,
    "broken": what is wrong with the tests themselves}. `quiet` lets assertions pass.
    """
    random.seed(0)
    session = Tests(known)
    namespace: dict[str, Any] = {"__name__": "tests"}
    errors: list[str] = []
    broken = ""

    def proxy(name: str) -> Any:
        return lambda *arguments, **named: session.call(name, arguments, named)

    try:
        trees = [ast.parse(text) for text in (setup, *tests)]
        namespace |= {name: proxy(name) for name in free_names(trees)}
        exec(compile(trees[0], "<setup>", "exec"), namespace)
        if entry:
            namespace[entry] = proxy(entry)
    except Exception as error:
        if not isinstance(error, Unknown):
            broken = f"{type(error).__name__}: {error}"
        trees = trees[:1] if not broken else []
    for tree in trees[1:]:
        try:
            exec(
                compile(ast.fix_missing_locations(Quiet().visit(tree)) if quiet else tree, "<test>", "exec"), namespace
            )
            errors.append("")
        except ImportError as error:
            broken = f"{type(error).__name__}: {error}"
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}"[:300])
    return {"calls": session.calls, "pending": session.pending, "errors": errors, "broken": broken}
