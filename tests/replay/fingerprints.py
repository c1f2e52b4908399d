"""What each workflow commands, read from its source: `python -m tests.replay.fingerprints` accepts what is there now.

A fingerprint is the source of a workflow with everything left out that issues no commands: from `run` and the message
handlers through every function of `workflows/` that they mention, the commands and patch markers in their order, with
the conditions and loops around them. Names of variables, comments, timeouts, retries and payloads are no part of it.
It sees paths that no stored history takes; a stored history sees what no source shows. So there are both.
"""

from __future__ import annotations

import ast
import builtins
import copy
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BASELINE = Path(__file__).with_name("fingerprints.json")

HANDLERS = ("signal", "update", "query")
# What in Temporal's modules, or in asyncio as a workflow runs it, issues a command or decides the order of commands.
COMMANDS = (
    *(
        f"temporalio.workflow.{verb}_{what}"
        for verb in ("execute", "start")
        for what in (
            "activity", "activity_class", "activity_method", "child_workflow",
            "local_activity", "local_activity_class", "local_activity_method", "nexus_operation",
        )
    ),
    *(
        f"temporalio.workflow.{name}"
        for name in (
            "sleep", "continue_as_new", "patched", "deprecate_patch", "upsert_search_attributes", "upsert_memo",
            "get_external_workflow_handle", "get_external_workflow_handle_for",
        )
    ),
    "asyncio.sleep", "asyncio.timeout", "asyncio.timeout_at", "asyncio.wait_for", "asyncio.gather",
    "asyncio.create_task",
)  # fmt: skip
WAIT = "temporalio.workflow.wait_condition"
# Methods of handles of activities and other workflows.
OF_HANDLES = ("cancel", "signal")
# Arguments that are part of a command's identity; all others may change.
IDENTITY = ("id", "activity_id")

ADVICE = """\
What a workflow commands has changed:

{diff}

An open run is rebuilt by running this code on what it did so far, so it stands still if it did something else.

Put the change behind workflow.patched("...") if it
- adds, removes or moves an activity, timer or child workflow, or changes which one it is, its name or its id;
- changes a condition or loop around one so that a run which began before could have decided otherwise;
- removes a patch marker while a run that began before it, or that holds it, is open.
It needs no gate if the commands come in the same order as before: a function was renamed or split, a condition was
written in other words. Nor if no server runs the workflow yet.

When the change is gated or needs no gate, accept it: .venv/bin/python -m tests.replay.fingerprints
How: docs/how-to/change-a-workflow.md"""

# By function, in the order in which they are reached: what is commanded there, line by line.
Fingerprint = dict[str, list[str]]

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def workflow_sources() -> dict[str, str]:
    """Return the source of every module in `workflows/` by its name."""
    return {f"workflows.{path.stem}": path.read_text() for path in sorted((ROOT / "workflows").glob("*.py"))}


def fingerprints(sources: Mapping[str, str]) -> dict[str, Fingerprint]:
    """Return the fingerprint of every workflow in the modules given, by the name of its class."""
    modules = {name: _Module(source) for name, source in sources.items()}
    return {
        node.name: _Reader(modules, _Class(module, node)).fingerprint()
        for module in modules.values()
        for node in module.classes.values()
        if any(_dotted(module, each) == "temporalio.workflow.defn" for each in node.decorator_list)
    }


def difference(before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> str:
    """Return how fingerprints differ, and what to do about it; empty if they do not."""
    diff = list(difflib.unified_diff(_lines(before), _lines(now), "before", "now", lineterm=""))
    return ADVICE.format(diff="\n".join(diff)) if diff else ""


def _lines(of: Mapping[str, Fingerprint]) -> list[str]:
    lines = []
    for workflow, functions in of.items():
        lines.append(workflow)
        for name, body in functions.items():
            lines += [f"  {name}", *(f"    {line}" for line in body)]
    return lines


class _Module:
    """One source file, and what its names mean."""

    def __init__(self, source: str) -> None:
        tree = ast.parse(source)
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.functions = {node.name: node for node in tree.body if isinstance(node, _Function)}
        self.constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        self.imports: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.imports |= {each.asname or each.name: each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                self.imports |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}

    def knows(self, name: str) -> bool:
        """Tell whether a name is one of the module's and not a variable."""
        return any(name in names for names in (self.classes, self.functions, self.constants, self.imports))


def _dotted(module: _Module, node: ast.expr) -> str | None:
    """Return the full name of what an expression names outside its own module, None if it names nothing."""
    if isinstance(node, ast.Call):
        return _dotted(module, node.func)
    if isinstance(node, ast.Name):
        return module.imports.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _dotted(module, node.value)
        return f"{owner}.{node.attr}" if owner is not None else None
    return None


def _is_activity(module: _Module, node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and (_dotted(module, node) or "").startswith("activities.")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


@dataclass(frozen=True)
class _Class:
    module: _Module
    node: ast.ClassDef


@dataclass(frozen=True)
class _Place:
    """A function, as it runs for an instance of a class."""

    module: _Module
    node: _Function
    home: _Class | None = None
    instance: _Class | None = None

    @property
    def name(self) -> str:
        return f"{self.home.node.name}.{self.node.name}" if self.home is not None else self.node.name


class _Reader:
    """Reads one workflow."""

    def __init__(self, modules: Mapping[str, _Module], workflow: _Class) -> None:
        self._modules = modules
        self._workflow = workflow
        self._functions: Fingerprint = {}
        self._being_read: set[str] = set()

    def fingerprint(self) -> Fingerprint:
        """Return what the workflow commands, beginning with how it is called."""
        entries = []
        for each in self._ancestry(self._workflow):
            for node in each.node.body:
                if isinstance(node, _Function) and (kind := self._kind(each.module, node)) is not None:
                    place = self._method(self._workflow, node.name)
                    assert place is not None
                    self.commands(place)
                    entries.append(f"{kind} {place.name}")
        return {"called by": sorted(set(entries)), **{name: lines for name, lines in self._functions.items() if lines}}

    def commands(self, place: _Place) -> bool:
        """Read a function unless that was done, and tell whether it commands anything."""
        if place.name in self._being_read:
            return True
        if place.name not in self._functions:
            self._being_read.add(place.name)
            self._functions[place.name] = []
            block = _Body(self, place).block(place.node.body)
            self._functions[place.name] = block.lines if block.commands else []
            self._being_read.remove(place.name)
        return bool(self._functions[place.name])

    def is_table(self, module: _Module, name: str) -> bool:
        """Tell whether a name means a table of activities, and take it in if it does."""
        found = self._constant(module, name)
        table = found[1] if found is not None else None
        if found is None or not isinstance(table, ast.Dict):
            return False
        if not any(_is_activity(found[0], node) for value in table.values for node in ast.walk(value)):
            return False
        pairs = zip(table.keys, table.values, strict=True)
        self._functions[name] = [f"{ast.unparse(key)}: {ast.unparse(value)}" for key, value in pairs if key is not None]
        return True

    def text(self, module: _Module, name: str) -> str | None:
        """Return the text that a name means in a module."""
        found = self._constant(module, name)
        return ast.unparse(found[1]) if found is not None and _is_text(found[1]) else None

    def _constant(self, module: _Module, name: str) -> tuple[_Module, ast.expr] | None:
        if name in module.constants:
            return module, module.constants[name]
        home, _, original = module.imports.get(name, "").rpartition(".")
        return self._constant(self._modules[home], original) if home in self._modules else None

    def _kind(self, module: _Module, node: _Function) -> str | None:
        """Return how Temporal calls a method, None if it does not."""
        for decorator in node.decorator_list:
            kind = (_dotted(module, decorator) or "").removeprefix("temporalio.workflow.")
            if kind in ("run", "init"):
                return kind
            if kind in HANDLERS:
                names = decorator.keywords if isinstance(decorator, ast.Call) else []
                named = [ast.unparse(each.value) for each in names if each.arg == "name"]
                return " ".join((kind, *named))
        return None

    def find(self, module: _Module, name: str) -> _Class | _Place | None:
        """Return the class or function of ours that a name means in a module."""
        if name in module.classes:
            return _Class(module, module.classes[name])
        if name in module.functions:
            return _Place(module, module.functions[name])
        home, _, original = module.imports.get(name, "").rpartition(".")
        return self.find(self._modules[home], original) if home in self._modules else None

    def _ancestry(self, of: _Class) -> list[_Class]:
        found = [of]
        for base in of.node.bases:
            parent = self.find(of.module, base.id) if isinstance(base, ast.Name) else None
            if isinstance(parent, _Class):
                found += self._ancestry(parent)
        return found

    def _method(self, of: _Class, name: str, *, above: _Class | None = None) -> _Place | None:
        ancestry = self._ancestry(of)
        for each in ancestry[ancestry.index(above) + 1 :] if above is not None else ancestry:
            for node in each.node.body:
                if isinstance(node, _Function) and node.name == name:
                    return _Place(each.module, node, each, of)
        return None

    def member(self, place: _Place, node: ast.expr) -> _Place | None:
        """Return the function of ours that an expression names at a place."""
        if isinstance(node, ast.Name):
            found = self.find(place.module, node.id)
            return self._method(found, "__init__") if isinstance(found, _Class) else found
        if not isinstance(node, ast.Attribute):
            return None
        if ast.unparse(node.value) == "super()" and place.instance is not None:
            return self._method(place.instance, node.attr, above=place.home)
        owner = self._type(place, node.value)
        return self._method(owner, node.attr) if owner is not None else None

    def _type(self, place: _Place, node: ast.expr | None) -> _Class | None:
        """Return the class of ours that the value of an expression has."""
        found: _Class | _Place | None = None
        match node:
            case ast.Name(id="self"):
                found = place.instance
            case ast.Name(id=name):
                arguments = [*place.node.args.posonlyargs, *place.node.args.args, *place.node.args.kwonlyargs]
                found = next((self._type(place, each.annotation) for each in arguments if each.arg == name), None)
                found = found or self.find(place.module, name)
            case ast.Constant(value=str(text)):
                found = self.find(place.module, text)
            case ast.Call(func=ast.Name(id=name)):
                found = self.find(place.module, name)
            case ast.Attribute(value=owner, attr=name):
                holder = self._type(place, owner)
                found = self._attribute(holder, name) if holder is not None else None
        return found if isinstance(found, _Class) else None

    def _attribute(self, of: _Class, name: str) -> _Class | None:
        for each in self._ancestry(of):
            for method in (node for node in each.node.body if isinstance(node, _Function)):
                place = _Place(each.module, method, each, of)
                for node in ast.walk(method):
                    if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == f"self.{name}":
                        return self._type(place, node.annotation)
                    if isinstance(node, ast.Assign) and f"self.{name}" in map(ast.unparse, node.targets):
                        return self._type(place, node.value)
        return None


@dataclass
class _Block:
    """Lines of a fingerprint, and whether any of them is a command: without, conditions and returns do not matter."""

    lines: list[str] = field(default_factory=list)
    commands: bool = False

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.commands = True

    def take(self, other: _Block, header: str | None = None) -> None:
        self.commands |= other.commands
        self.lines += other.lines if header is None else [header, *(f"  {line}" for line in other.lines)]


class _Body:
    """Reads the statements of one function."""

    def __init__(self, reader: _Reader, place: _Place) -> None:
        self._reader = reader
        self._place = place
        self._module = place.module

    def block(self, statements: list[ast.stmt]) -> _Block:
        """Return what statements command."""
        found = _Block()
        for each in statements:
            found.take(self._statement(each))
        return found

    def _statement(self, node: ast.stmt) -> _Block:
        compound = self._compound(node)
        if compound is not None:
            return compound
        found = self._expressions(node)
        match node:
            case ast.Return():
                found.lines.append("return")
            case ast.Raise(exc=error):
                kind = error.func if isinstance(error, ast.Call) else error
                found.lines.append(f"raise {self._plain(kind)}" if kind is not None else "raise")
            case ast.Break() | ast.Continue():
                found.lines.append(ast.unparse(node))
            case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value=key))], value=value) if key in IDENTITY:
                found.add(f"{key} = {self._plain(value)}")
        return found

    def _compound(self, node: ast.stmt) -> _Block | None:
        """Return what a statement with bodies commands, under what decides about it; None if it has none."""
        match node:
            case ast.If(test=test) | ast.While(test=test):
                keyword = "if" if isinstance(node, ast.If) else "while"
                return self._bodies([test], [(f"{keyword} {self._plain(test)}", node.body), ("else", node.orelse)])
            case ast.For(iter=each) | ast.AsyncFor(iter=each):
                return self._bodies([each], [(f"for each of {self._plain(each)}", node.body), ("else", node.orelse)])
            case ast.With(items=items) | ast.AsyncWith(items=items):
                managers = [item.context_expr for item in items]
                return self._bodies(managers, [(f"with {', '.join(map(self._plain, managers))}", node.body)])
            case ast.Try() | ast.TryStar():
                caught = [(f"except {self._plain(each.type)}", each.body) for each in node.handlers]
                rest = [("else", node.orelse), ("finally", node.finalbody)]
                return self._bodies([], [("try", node.body), *caught, *rest])
            case ast.Match(subject=subject, cases=cases):
                return self._bodies([subject], [(f"case {ast.unparse(each.pattern)}", each.body) for each in cases])
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return self._bodies([], [("def", node.body)])
        return None

    def _bodies(self, before: Sequence[ast.expr], bodies: Sequence[tuple[str, list[ast.stmt]]]) -> _Block:
        found = _Block()
        for each in before:
            found.take(self._expressions(each))
        inner = [(header, self.block(statements)) for header, statements in bodies if statements]
        repeats = found.commands and any(header.startswith("while") for header, _block in inner)
        # Where nothing is commanded and nothing left, nothing is decided that matters.
        if repeats or any(block.lines for _header, block in inner):
            for header, block in inner:
                found.take(block, header)
        return found

    def _expressions(self, node: ast.AST) -> _Block:
        """Return what the expressions in a node command, in the order in which they are evaluated."""
        found = _Block()
        match node:
            case ast.Call():
                owner = [node.func.value] if isinstance(node.func, ast.Attribute) else []
                for each in (*owner, *node.args, *(keyword.value for keyword in node.keywords)):
                    found.take(self._expressions(each))
                command = self._command(node)
                if command is not None:
                    found.add(command)
            case ast.Attribute() | ast.Name():
                if isinstance(node, ast.Attribute):
                    found.take(self._expressions(node.value))
                place = self._reader.member(self._place, node)
                if place is not None and self._reader.commands(place):
                    found.add(place.name)
            case _:
                for child in ast.iter_child_nodes(node):
                    found.take(self._expressions(child))
        return found

    def _command(self, node: ast.Call) -> str | None:
        """Return what a call commands, itself or in a function of ours, None if nothing."""
        arguments = [text for each in node.args if (text := self._identity(each)) is not None]
        arguments += [f"{each.arg}={self._plain(each.value)}" for each in node.keywords if each.arg in IDENTITY]
        name = _dotted(self._module, node.func)
        if name in COMMANDS:
            return " ".join((name.removeprefix("temporalio."), *arguments))
        if name == WAIT:
            timeouts = [each.value for each in node.keywords if each.arg == "timeout"]
            return "workflow.wait_condition with timeout" if timeouts else None
        place = self._reader.member(self._place, node.func)
        if place is not None:
            return " ".join((place.name, *arguments)) if self._reader.commands(place) else None
        if isinstance(node.func, ast.Attribute) and node.func.attr in OF_HANDLES:
            return f"{node.func.attr} of a handle"
        if any(_is_activity(self._module, each) for each in node.args):
            return " ".join((self._plain(node.func), *arguments))
        return None

    def _identity(self, node: ast.expr) -> str | None:
        """Return an argument that tells one command from another: an activity, a workflow, a name."""
        match node:
            case ast.Constant(value=str()) | ast.JoinedStr():
                return self._plain(node)
            case ast.Name(id=name):
                return self._reader.text(self._module, name) or self._assigned(name)
            case ast.Attribute(value=ast.Name(id=owner)):
                is_workflow = self._reader.find(self._module, owner) is not None
                return ast.unparse(node) if is_workflow or _is_activity(self._module, node) else None
            case ast.Subscript(value=ast.Name(id=name)) if self._reader.is_table(self._module, name):
                return self._plain(node)
        return None

    def _assigned(self, name: str) -> str | None:
        """Return the texts that a variable of the function may hold, None if it holds none."""
        texts = [
            self._plain(node.value)
            for node in ast.walk(self._place.node)
            if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets) and _is_text(node.value)
        ]
        return " or ".join(texts) or None

    def _plain(self, node: ast.expr | None) -> str:
        """Return an expression as text in which every variable looks the same."""
        if node is None:
            return ""
        plain = copy.deepcopy(node)
        for each in ast.walk(plain):
            if isinstance(each, ast.Name) and each.id != "self" and not self._module.knows(each.id):
                each.id = each.id if hasattr(builtins, each.id) else "_"
        return ast.unparse(plain)


def main() -> None:
    """Accept what the workflows command now."""
    now = fingerprints(workflow_sources())
    BASELINE.write_text(json.dumps(now, indent=1) + "\n")
    print(f"{BASELINE.name}: {', '.join(now)}")


if __name__ == "__main__":
    main()
