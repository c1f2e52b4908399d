"""The replay gate as an engineer uses it on the embedded stack, whose payloads are encrypted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.platform import Platform, eventually, order

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_history_of_a_real_run(platform: Platform, tmp_path: Path) -> None:
    """What a real run did is saved in clear with the keys of the stack, and fits the code that did it."""
    with platform.api() as http:
        created = http.post("/tenants", json=order("replayed"))
        assert created.status_code == 202, created.text
        eventually(
            "the tenant is provisioned",
            lambda: http.get(f"/operations/{created.json()['id']}").json()["state"] == "completed",
        )
    workflow_id = f"tenant/replayed/{created.json()['id']}"
    path = tmp_path / "history.json"
    saved = platform.run("history", "save", workflow_id, "--to", str(path))
    assert saved.returncode == 0, saved.stderr
    assert saved.stdout == f"{path}\n"
    for target in (workflow_id, str(path)):
        replayed = platform.run("replay", target)
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
        assert replayed.stdout.startswith(f"{target}: ProvisionTenant, ")


def test_open_runs(platform: Platform) -> None:
    """Runs that wait for a vendor fit the code that runs them."""
    fault = platform.inject("ocis", "hold_before", method="POST", contains=["tenant/replayedopen/", "/ocis.space."])
    try:
        with platform.api() as http:
            created = http.post("/tenants", json=order("replayedopen")).json()
        eventually("a write is held", lambda: platform.faults("ocis")[fault]["held"] == 1)
        replayed = platform.run("replay", "--all-open")
    finally:
        platform.release("ocis", fault)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert f"tenant/replayedopen/{created['id']}: ProvisionTenant, " in replayed.stdout
