"""No circle of imports between files, wherever the import stands: at the top, for types alone, or inside a function."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src"


def imports_of(path, modules):
    """Modules of the project that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (parts & modules.keys()) or {node.module}
    return found & modules.keys()


def test_no_file_imports_itself_by_a_circle():
    files = sorted((SOURCES / "loopline").rglob("*.py"))
    modules = {".".join(file.relative_to(SOURCES).with_suffix("").parts): file for file in files}
    graph = {name: imports_of(file, modules) for name, file in modules.items()}
    assert sum(map(len, graph.values())) > 500
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' imports '.join(reversed(error.args[1]))}") from None
