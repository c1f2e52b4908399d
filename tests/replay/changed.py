"""Workflows with a change in their source, as somebody might deploy them."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import textwrap
from pathlib import Path

import pytest


class Changes:
    """Changes the source of workflows, and loads what comes out."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        # The sandbox imports the module of a workflow anew, by its name.
        monkeypatch.syspath_prepend(folder)

    def source(self, workflow: type, method: str, first: str) -> str:
        """Return the source of a workflow's module in which a method of it begins with more statements."""
        tree = ast.parse(Path(inspect.getfile(workflow)).read_text())
        (body,) = [
            function.body
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == workflow.__name__
            for function in node.body
            if isinstance(function, ast.AsyncFunctionDef) and function.name == method
        ]
        body[:0] = ast.parse(textwrap.dedent(first)).body
        return ast.unparse(tree)

    def workflow(self, workflow: type, method: str, first: str) -> type:
        """Return a workflow of which a method begins with more statements."""
        source = self.source(workflow, method, first)
        name = f"changed_{hashlib.sha256(source.encode()).hexdigest()[:12]}"
        (self._folder / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        found: type = getattr(importlib.import_module(name), workflow.__name__)
        return found
