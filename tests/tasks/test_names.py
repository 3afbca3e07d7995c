"""No package but the generators knows a task set by name: others read tags."""

import ast
from pathlib import Path

from loopline.tasks.generators.generate import GENERATORS

SOURCE = Path(__file__).parents[2] / "src" / "loopline"
WORDS = {"code", "format"}
"""Names that are everyday words as well."""


def named(path):
    """Names of generated sets among the text constants of a file, documentation aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return (set(GENERATORS) - WORDS) & set(texts)


def test_only_generators_name_their_sets():
    files = [path for path in SOURCE.rglob("*.py") if "generators" not in path.relative_to(SOURCE).parts]
    found = {path.relative_to(SOURCE).as_posix(): named(path) for path in files if named(path)}
    assert found == {}
