"""The rules of docs/architecture.md: commands, import order, no cycles, nothing unused."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import re
from pathlib import Path

import pytest
from places import ROOT

from klassify import cli

PAGE = ROOT / "docs/architecture.md"
# A folder imports only folders of the rows before its own, and the files at the root.
ORDER = [
    {"grid", "media"},
    {"lists", "augmentation", "metrics"},
    {"models"},
    {"features"},
    {"data", "corpus"},
    {"scores", "perturbation"},
    {"systems"},
    {"localisation"},
    {"submission", "training"},
    {"evaluation", "explanation"},
    {"prediction", "cluster"},
    {"report"},
    {"demo"},
    {"commands"},
]
NEVER = [
    ("models", {"lists", "features", "data", "media", "systems"}),
    ("data", {"scores", "training", "metrics"}),
]
# reached by name, not by code of ours: the hooks of argparse, jsonargparse, torch, coverage, python
CALLED_BY_OTHERS = re.compile(r"configure|run|main|forward|find_class|__\w+__|default")


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
    """Modules of ours that one imports anywhere: at its top, in functions, for types."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in modules() else str(node.module) for name in full)
    return {name for name in found if name in modules() and name != module}


def folder(module: str) -> str | None:
    """The folder of the package that a module is in; None at the root."""
    parts = modules()[module].relative_to(ROOT / "klassify").parts
    return parts[0] if len(parts) > 1 else None


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


def test_folders_import_lower_ones_alone():
    level = {name: number for number, row in enumerate(ORDER) for name in row}
    assert set(level) == {folder(module) for module in modules()} - {None}
    edges = [(module, other) for module in modules() for other in imported(module) if folder(other)]
    wrong = [
        f"{module} -> {other}"
        for module, other in edges
        if folder(module) not in (None, folder(other))
        and level[folder(module)] <= level[folder(other)]
    ]
    wrong += [
        f"{module} -> {other}"
        for module, other in edges
        if folder(module) is None and module != "klassify"
    ]
    assert not wrong


@pytest.mark.parametrize("name, others", NEVER)
def test_some_folders_never_know_others(name, others):
    edges = [(m, o) for m in modules() if folder(m) == name for o in imported(m)]
    assert not [edge for edge in edges if folder(edge[1]) in others]


def takes_namespace(node: ast.AST) -> bool:
    """Whether a function has an argument whose type names argparse.Namespace."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    given = node.args
    types = [one.annotation for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return any(re.search(r"\bNamespace\b", ast.unparse(one)) for one in types if one)


def test_a_namespace_among_the_arguments_is_found():
    code = "def f(x: int, *, args: argparse.Namespace | None): ...\ndef g(s: SimpleNamespace): ..."
    assert [takes_namespace(node) for node in ast.parse(code).body] == [True, False]


def test_libraries_take_arguments_and_no_namespace():
    found = [
        f"{module}.{node.name}"
        for module in modules()
        if folder(module) != "commands"
        and module not in ("klassify.cli", "klassify.cluster.options")
        for node in ast.walk(tree(module))
        if takes_namespace(node)
    ]
    assert not found


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_lives_in_its_module(command):
    module = importlib.import_module(f"klassify.commands.{command.replace('-', '_')}")
    parser = argparse.ArgumentParser()
    module.configure(parser)
    assert all(action.help for action in parser._actions) and callable(module.run)
    assert module.__doc__ and f"klassify {command}" in module.__doc__


def test_the_page_names_every_folder_and_root_file():
    page = PAGE.read_text(encoding="utf-8")
    folders = {f"{folder(module)}/" for module in modules() if folder(module)}
    files = {path.name for path in (ROOT / "klassify").glob("[!_]*.py")}
    assert not [name for name in folders | files if f"`{name}`" not in page]


def used(module: str) -> set[str]:
    """The names that a module reads, also as attributes and inside non-docstring texts."""
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


def test_nothing_is_unused():
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
