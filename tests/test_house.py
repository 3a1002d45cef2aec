"""The house as docs/architecture.md tells it: where commands live, what the page names, no
circles, nothing unused.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

from klassify import cli

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/architecture.md"
# reached by name, not by code of ours: the hooks of argparse, jsonargparse, torch, coverage and
# python
CALLED_BY_OTHERS = re.compile(r"configure|run|main|forward|__\w+__|default")


@functools.cache
def modules() -> dict[str, Path]:
    """{dotted name: file} of the package."""
    files = sorted((ROOT / "klassify").rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def imported(module: str) -> set[str]:
    """Modules of ours that one imports anywhere: at its top, inside functions, or for its types
    alone.
    """
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in modules() else str(node.module) for name in full)
    return {name for name in found if name in modules() and name != module}


def defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [
        name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some way in a graph that ends where it began, or nothing."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        found = next(
            (ring for other in sorted(graph[node]) if (ring := walk(other, [*way, node]))), []
        )
        done.add(node)
        return found

    return next((ring for node in graph if (ring := walk(node, []))), [])


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b"}}) == ["b", "c", "d", "b"]


def test_no_module_leads_back_to_itself():
    ring = circle({module: imported(module) for module in modules()})
    assert not ring, " -> ".join(ring)


def test_models_know_nothing_of_lists_stores_decoders_and_systems():
    forbidden = re.compile(
        r"klassify\.(data\w*|\w*_data\w*|lists|\w*store\w*|\w*file\w*|media|decoding|workers|"
        r"systems|experiment|features.*|scoring.*|training.*|submission.*|evaluation.*|launch.*)"
    )
    seen = {(m, o) for m in modules() if m.startswith("klassify.models.") for o in imported(m)}
    assert not {(m, o) for m, o in seen if forbidden.fullmatch(o)}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_lives_in_its_module(command):
    module = importlib.import_module(f"klassify.{command.replace('-', '_')}")
    assert callable(module.configure) and callable(module.run)
    assert module.__doc__ and f"klassify {command}" in module.__doc__


def named_on_the_page() -> set[str]:
    """Files and folders of the package in the first column of the page's table."""
    rows = re.findall(r"(?m)^\| ((?:`[\w./]+`(?:, )?)+) \|", PAGE.read_text(encoding="utf-8"))
    return {name for row in rows for name in re.findall(r"`([\w./]+)`", row)}


def test_the_page_names_all_that_is_there_and_nothing_else():
    commands = {f"{command.replace('-', '_')}.py" for command in cli.COMMANDS}
    package = ROOT / "klassify"
    there = {path.name for path in package.glob("*.py")} | {
        f"{p.parent.name}/" for p in package.glob("*/__init__.py")
    }
    named = named_on_the_page()
    assert named - there == set()
    assert there - named - commands - {"__init__.py", "__main__.py"} == set()


def used(module: str) -> set[str]:
    """The names that a module reads, also as attributes and inside texts that are no docstrings."""
    nodes, words = list(ast.walk(tree(module))), set()
    documented = [
        node
        for node in nodes
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
    ]
    docstrings = {
        id(node.body[0].value) for node in documented if isinstance(node.body[0], ast.Expr)
    }
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            words.update(re.findall(r"\w+", node.value))
    return words


def test_nothing_stands_there_that_nobody_uses():
    """Each function, class, constant and method is used by the package, a config or a page."""
    paths = [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "docs").glob("*.md")]
    words = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in paths)))
    words = words.union(*map(used, modules()))
    nodes = [(module, node) for module in modules() for node in tree(module).body]
    nodes += [
        (module, inner)
        for module, node in nodes
        if isinstance(node, ast.ClassDef)
        for inner in node.body
        if isinstance(inner, ast.FunctionDef)
    ]
    unused = [
        f"{module}.{name}"
        for module, node in nodes
        for name in defined(node)
        if name not in words and not CALLED_BY_OTHERS.fullmatch(name)
    ]
    assert not unused
