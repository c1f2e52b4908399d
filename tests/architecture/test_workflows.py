"""Workflows, activities and workers fit together: what is called is served, and where it is called."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio import activity, workflow

import runtime.dispatcher
from domain.operations import system_of
from runtime.settings import Settings
from runtime.wiring import Store, Vendors, build_activities
from worker import WORKFLOWS, queue_limits
from workflows.options import PLATFORM_QUEUE

ROOT = Path(__file__).parent.parent.parent
# Where types are resolved at run time, by Temporal or pydantic.
ROOMS_OF_PAYLOADS = ("workflows", "activities", "domain")
WRITES = ("create_", "delete_", "destroy_", "set_", "add_", "invite_", "disable_", "purge_")
CLIENTS = ("_authentik", "_stalwart", "_ocis", "_billing")


def modules(room: str) -> list[Path]:
    """Return the modules of a room."""
    return sorted((ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    """Return a short name of a module for a test's id."""
    return "/".join(path.relative_to(ROOT).parts)


@pytest_asyncio.fixture(loop_scope="session")
async def served(settings: Settings, store: Store, vendors: Vendors) -> dict[str, str]:
    """The queue of each registered activity by the qualified name of its method."""
    queues = build_activities(settings, store, vendors)
    return {method.__qualname__: queue for queue, methods in queues.items() for method in methods}


class Call:
    """A place in a workflow where an activity is named."""

    def __init__(self, method: str, queue: str | None, line: int) -> None:
        self.method = method
        self.queue = queue
        self.line = line


def calls(source: str) -> list[Call]:
    """Return every activity that a workflow's source names, with the queue that goes with it if it can be seen there.

    A step's queue is the system its name begins with; `record` goes to the platform's queue. In a table of steps the
    name is the key.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            names = [each for each in node.args if activity_of(each) is not None]
            queue = PLATFORM_QUEUE if isinstance(node.func, ast.Attribute) and node.func.attr == "record" else None
            if queue is None and names:
                queue = system_in(node.args[0])
            found += [Call(str(activity_of(each)), queue, node.lineno) for each in names]
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if activity_of(value) is not None and key is not None:
                    found.append(Call(str(activity_of(value)), system_in(key), value.lineno))
    return found


def activity_of(node: ast.expr) -> str | None:
    """Return `Class.method` if the expression names an activity."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id.endswith("Activities"):
        return f"{node.value.id}.{node.attr}"
    return None


def system_in(node: ast.expr) -> str | None:
    """Return the system that the name of a step begins with."""
    first = node.values[0] if isinstance(node, ast.JoinedStr) else node
    return system_of(first.value) if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


@pytest.mark.parametrize("path", modules("workflows"), ids=name_of)
@pytest.mark.asyncio
async def test_called_activities_are_served(path: Path, served: dict[str, str]) -> None:
    """Every activity that a workflow names is registered on the queue to which the workflow sends it."""
    source = path.read_text()
    named = {activity_of(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.expr)} - {None}
    found = calls(source)
    assert {call.method for call in found} == named
    wrong = [(call.line, call.method, call.queue) for call in found if served.get(call.method) != call.queue]
    assert not wrong


@pytest.mark.asyncio
async def test_every_queue_is_served(settings: Settings, store: Store, vendors: Vendors) -> None:
    """Every queue with activities has a worker with limits, and no worker waits at a queue without any."""
    assert set(build_activities(settings, store, vendors)) == set(queue_limits(settings))


def workflows_of(room: str) -> dict[str, str | None]:
    """Return the explicit name of each workflow class in a room, None where it has none."""
    return {
        node.name: explicit_name(decorator)
        for path in modules(room)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
        if ast.unparse(decorator).startswith("workflow.defn")
    }


def explicit_name(decorator: ast.expr) -> str | None:
    """Return the name that a decorator gives."""
    if isinstance(decorator, ast.Call):
        for keyword in decorator.keywords:
            if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    return None


def test_workflows_are_served_and_started() -> None:
    """Every workflow is served by the worker and started for some kind of operation."""
    defined = set(workflows_of("workflows"))
    assert {each.__name__ for each in WORKFLOWS} == defined
    assert {each.__name__ for each in runtime.dispatcher.WORKFLOWS.values()} == defined


def test_workflows_are_named() -> None:
    """A workflow's name is a wire contract, so it is written down: renaming the class must not rename it."""
    named = workflows_of("workflows")
    assert named
    assert None not in named.values()
    for each in WORKFLOWS:
        definition = workflow._Definition.from_class(each)
        assert definition is not None
        assert definition.name == named[each.__name__]


@pytest.mark.asyncio
async def test_activities_are_named(settings: Settings, store: Store, vendors: Vendors) -> None:
    """An activity's name is written down, each once."""
    explicit = [
        explicit_name(decorator)
        for path in modules("activities")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)
        for decorator in node.decorator_list
        if ast.unparse(decorator).startswith("activity.defn")
    ]
    assert None not in explicit
    assert len(set(explicit)) == len(explicit)
    registered = {
        _definition(method).name
        for methods in build_activities(settings, store, vendors).values()
        for method in methods
    }
    assert set(explicit) == registered


@pytest.mark.asyncio
async def test_activities_take_one_typed_payload(settings: Settings, store: Store, vendors: Vendors) -> None:
    """An activity takes one model and returns one, so that fields can be added."""
    for methods in build_activities(settings, store, vendors).values():
        for method in methods:
            definition = _definition(method)
            assert definition.arg_types is not None
            assert len(definition.arg_types) == 1
            assert definition.ret_type is not None
            assert inspect.iscoroutinefunction(method)


def _definition(method: Callable[..., Any]) -> activity._Definition:
    definition = activity._Definition.from_callable(method)
    assert definition is not None
    return definition


@pytest.mark.parametrize("path", [each for room in ROOMS_OF_PAYLOADS for each in modules(room)], ids=name_of)
def test_no_hidden_payload_types(path: Path) -> None:
    """No type is imported for checkers only: Temporal and pydantic resolve annotations when the class is made."""
    assert "TYPE_CHECKING" not in path.read_text()


def unannounced_writes(source: str) -> list[tuple[str, int]]:
    """Return the method and line of every client write that no awaited `acting` precedes.

    A private helper that writes without announcing it is fine if every call of it comes after an `acting`.
    """
    methods = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AsyncFunctionDef)}
    silent: dict[str, list[int]] = {}
    while True:
        found = {name: _silent_lines(node, silent) for name, node in methods.items()}
        found = {name: lines for name, lines in found.items() if lines}
        if found == silent:
            break
        silent = found
    return [(name, line) for name, lines in silent.items() for line in lines if not name.startswith("_")]


def _silent_lines(method: ast.AsyncFunctionDef, silent: dict[str, list[int]]) -> list[int]:
    awaited = [
        node.value
        for node in ast.walk(method)
        if isinstance(node, ast.Await)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
    ]
    awaited.sort(key=lambda call: (call.lineno, call.col_offset))
    lines: list[int] = []
    for call in awaited:
        assert isinstance(call.func, ast.Attribute)
        if call.func.attr == "acting":
            return lines
        if _is_write(call.func) or call.func.attr in silent:
            lines.append(call.lineno)
    return lines


def _is_write(function: ast.Attribute) -> bool:
    client = function.value
    return isinstance(client, ast.Attribute) and client.attr in CLIENTS and function.attr.startswith(WRITES)


@pytest.mark.parametrize("path", modules("activities"), ids=name_of)
def test_writes_are_announced(path: Path) -> None:
    """No activity writes outside before it has said so: a crash in between would lose the audit event."""
    assert unannounced_writes(path.read_text()) == []


@pytest.mark.parametrize(
    ("body", "silent"),
    [
        ("await self._ocis.create_space(s)", True),
        ("await current_step().acting(a)\n        await self._ocis.create_space(s)", False),
        ("await self._ocis.create_space(s)\n        await current_step().acting(a)", True),
        ("await self._make()", True),
        ("await current_step().acting(a)\n        await self._make()", False),
        ("await self._ocis.find_spaces(s)", False),
    ],
    ids=["write", "announced", "announced too late", "in a helper", "announced for a helper", "read"],
)
def test_the_check_can_fail(body: str, silent: bool) -> None:
    """The check above tells a write that is not announced from one that is."""
    source = f"""
class OcisActivities:
    async def ensure(self, s, a):
        {body}

    async def _make(self, s):
        await self._ocis.create_group(s)
"""
    assert bool(unannounced_writes(source)) is silent
