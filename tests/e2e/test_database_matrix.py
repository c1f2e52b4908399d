"""Activities that only write our own database meet the death of MongoDB and of the worker, before and after doing.

One kill serves a whole row: each cell is a tenant of its own, held at its own activity.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.stack.children import die_with_parent
from sandbox.stack.layout import Files, Ports
from sandbox.stack.stack import Stack
from tests.support.census import census, not_exactly_one
from tests.support.platform import Platform, eventually, order
from tests.support.servers import free_port_base

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ACTIVITIES = ("plan_provision", "record_tenant_outcome", "close_operation")
MOMENTS = ("before", "after")


class HoldingWorker:
    """The worker process of the test, which can be told to hold and be killed."""

    def __init__(self, platform: Platform, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        stack = Stack(Ports(platform.port_base), Files(platform.data_dir), lambda _line: None)
        self._environment = {**stack.environment(), "OPERATION_PROFILE": "fast", "STRIPE_RATE_PER_SECOND": "200"}

    def start(self) -> None:
        with (self._directory / "worker.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.support.holding_worker", str(self._directory)]
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, preexec_fn=die_with_parent
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def hold(self, moment: str, activity: str, slug: str) -> None:
        (self._directory / f"hold.{moment}.{activity}.{slug}").touch()

    def all_held(self) -> bool:
        return not [name for name in os.listdir(self._directory) if name.startswith("hold.")]

    def release(self) -> None:
        (self._directory / "release").touch()


@pytest.fixture(scope="module")
def own_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform whose worker the test runs itself."""
    with Platform(tmp_path_factory.mktemp("database-matrix"), free_port_base(), without=["worker"]) as running:
        yield running


@pytest.mark.parametrize("victim", ["worker", "mongo"])
def test_every_database_activity_converges(
    own_platform: Platform, victim: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each cell ends with an active tenant, a released lock and exactly one of each object and event."""
    worker = HoldingWorker(own_platform, tmp_path)
    cells = {f"{victim}-{moment}-{number}": (moment, activity)
             for moment in MOMENTS for number, activity in enumerate(ACTIVITIES)}  # fmt: skip
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(worker.kill)
        for slug, (moment, activity) in cells.items():
            worker.hold(moment, activity, slug)
        worker.start()
        with own_platform.api() as http:
            for slug in cells:
                assert http.post("/tenants", json=order(slug)).status_code == 202
        eventually("every activity is held", worker.all_held)
        if victim == "worker":
            worker.kill()
            worker.release()
            worker.start()
        else:
            own_platform.kill("mongo")
            worker.release()
        outcomes = {slug: _outcome(own_platform, slug) for slug in cells}
    with capsys.disabled():
        print(f"\n\n{victim + ' killed, held':<26}" + "".join(f"{moment:<14}" for moment in MOMENTS))
        for number, activity in enumerate(ACTIVITIES):
            row = "".join(f"{outcomes[f'{victim}-{moment}-{number}']:<14}" for moment in MOMENTS)
            print(f"{activity:<26}{row}")
    assert set(outcomes.values()) == {"converged"}


def _outcome(platform: Platform, slug: str) -> str:
    def settled() -> bool:
        with platform.api() as http:
            answer = http.get(f"/tenants/{slug}")
        return answer.status_code == 200 and answer.json()["status"] == "active" and not answer.json()["operation"]

    eventually(f"{slug} is active and its lock is free", settled)
    with platform.api() as http:
        tenant = http.get(f"/tenants/{slug}").json()
        operation = http.get("/operations", params={"tenant": slug}).json()["items"][0]
    wrong = not_exactly_one(census(platform, tenant))
    return "converged" if operation["state"] == "completed" and not wrong else f"{operation['state']}, {wrong}"
