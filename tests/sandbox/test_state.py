"""The documents of a stand-in survive its end."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sandbox.state import State


def test_documents_survive_reopening(tmp_path: Path) -> None:
    """What was put is there again, in the order of insertion, without what was deleted."""
    state = State(tmp_path / "state.sqlite")
    groups = state.table("groups")
    for key in ("c", "a", "b"):
        groups.put(key, {"name": key})
    groups.put("c", {"name": "changed"})
    groups.delete("a")
    state.close()

    reopened = State(tmp_path / "state.sqlite")
    assert list(reopened.table("groups")) == [{"name": "changed"}, {"name": "b"}]
    reopened.close()


def test_a_put_is_on_disk_at_once(tmp_path: Path) -> None:
    """Another connection sees a document without the first one being closed, as after a kill."""
    state = State(tmp_path / "state.sqlite")
    state.table("groups").put("a", {"name": "a"})

    reader = sqlite3.connect(tmp_path / "state.sqlite")
    assert reader.execute("SELECT kind, key, body FROM documents").fetchall() == [("groups", "a", '{"name": "a"}')]
    reader.close()
    state.close()


def test_tables_do_not_mix(tmp_path: Path) -> None:
    """The same key in two tables is two documents."""
    state = State(tmp_path / "state.sqlite")
    state.table("groups").put("1", {"kind": "group"})
    state.table("users").put("1", {"kind": "user"})
    assert state.table("groups").get("1") == {"kind": "group"}
    assert len(state.table("users")) == 1
    assert "2" not in state.table("users")
    state.close()


def test_numbers_are_never_given_twice(tmp_path: Path) -> None:
    """A counter goes on after reopening, and counters are independent."""
    state = State(tmp_path / "state.sqlite")
    assert [state.next_number("users"), state.next_number("users"), state.next_number("groups")] == [1, 2, 1]
    state.close()

    reopened = State(tmp_path / "state.sqlite")
    assert reopened.next_number("users") == 3
    reopened.close()


def test_a_state_without_a_file_ends_with_the_process() -> None:
    """A state in memory works like one on disk while it lasts."""
    state = State()
    state.table("groups").put("a", {"name": "a"})
    assert state.table("groups").delete("a") == {"name": "a"}
    assert state.table("groups").delete("a") is None
    state.close()
    with pytest.raises(sqlite3.ProgrammingError):
        state.table("groups").put("a", {"name": "a"})
