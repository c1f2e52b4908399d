"""State of an operation x what happens to it: every cell has a stated outcome, and none leaves a lock behind.

Each cell is a tenant of its own. The cells of a column run at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.support.census import census, leftovers, not_exactly_one
from tests.support.platform import Platform, eventually, order

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

REFUSAL = {
    "status": 403,
    "body": '{"error":{"code":"accessDenied","message":"no"}}',
    "content_type": "application/json",
}
STEP = "ocis.space"
TASK_COMPLETED = "EVENT_TYPE_WORKFLOW_TASK_COMPLETED"
STATES = ["writing", "backing off", "needs operator", "undoing", "settling", "ended"]
ACTIONS = ["retry", "skip", "cancel", "terminate", "reset", "worker killed", "decision lost"]

# What comes of it: "<answer of the API or the CLI>, <state in the end>".
EXPECTED: dict[tuple[str, str], str] = {
    ("writing", "retry"): "409 step_not_parked, completed",
    ("writing", "skip"): "409 step_not_parked, completed",
    ("writing", "cancel"): "202, canceled",
    ("writing", "terminate"): "done, terminated",
    ("writing", "reset"): "done, completed",
    ("writing", "worker killed"): "completed",
    ("writing", "decision lost"): "202, canceled",
    ("backing off", "retry"): "409 step_not_parked, completed",
    ("backing off", "skip"): "409 step_not_parked, completed",
    ("backing off", "cancel"): "202, canceled",
    ("backing off", "terminate"): "done, terminated",
    ("backing off", "reset"): "done, completed",
    ("backing off", "worker killed"): "completed",
    ("backing off", "decision lost"): "202, canceled",
    ("needs operator", "retry"): "202, completed",
    ("needs operator", "skip"): "202, completed",
    ("needs operator", "cancel"): "202, canceled",
    ("needs operator", "terminate"): "done, terminated",
    # It is refused no more, so the new run does not park.
    ("needs operator", "reset"): "done, completed",
    ("needs operator", "worker killed"): "needsOperator, completed once retried",
    ("needs operator", "decision lost"): "202, completed",
    ("undoing", "retry"): "409 step_not_parked, canceled",
    ("undoing", "skip"): "409 step_not_parked, canceled",
    ("undoing", "cancel"): "202, canceled",
    ("undoing", "terminate"): "done, terminated",
    ("undoing", "reset"): "done, canceled",
    ("undoing", "worker killed"): "canceled",
    ("undoing", "decision lost"): "202, canceled",
    ("settling", "retry"): "409 step_not_parked, completed",
    ("settling", "skip"): "409 step_not_parked, completed",
    ("settling", "cancel"): "409 not_cancelable, completed",
    ("settling", "terminate"): "done, terminated",
    ("settling", "reset"): "done, completed",
    ("settling", "worker killed"): "completed",
    ("settling", "decision lost"): "409 not_cancelable, completed",
    ("ended", "retry"): "409 step_not_parked, completed",
    ("ended", "skip"): "409 step_not_parked, completed",
    ("ended", "cancel"): "409 not_cancelable, completed",
    ("ended", "terminate"): "refused, completed",
    ("ended", "reset"): "done, completed",
    ("ended", "worker killed"): "completed",
    ("ended", "decision lost"): "409 not_cancelable, completed",
}


@dataclass
class Cell:
    """One tenant in one state, to which one thing happens."""

    platform: Platform
    state: str
    action: str
    operation_id: str = ""
    tenant: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    answer: str = ""
    before: dict[str, Any] = field(default_factory=dict)
    outcome: str = ""

    @property
    def slug(self) -> str:
        return f"x-{self.state}-{self.action}".replace(" ", "-")

    @property
    def workflow_id(self) -> str:
        return f"tenant/{self.slug}/{self.operation_id}"

    def operation(self) -> dict[str, Any]:
        """Return the operation as an operator reads it."""
        with self.platform.api("operator") as http:
            found: dict[str, Any] = http.get(f"/operations/{self.operation_id}").json()
        return found

    def read_tenant(self) -> dict[str, Any]:
        """Return the tenant as an operator reads it."""
        with self.platform.api("operator") as http:
            found: dict[str, Any] = http.get(f"/tenants/{self.slug}").json()
        return found

    def step(self, name: str) -> dict[str, Any]:
        """Return a step as it stands."""
        steps: dict[str, dict[str, Any]] = {step["name"]: step for step in self.operation()["steps"]}
        return steps.get(name, {"state": "absent", "attempts": 0})

    def inject(self, action: str, method: str, needle: str, **spec: Any) -> None:
        """Let a request of this tenant meet a fault."""
        contains = [f"tenant/{self.slug}/", needle]
        self.faults.append(self.platform.inject("ocis", action, method=method, contains=contains, **spec))

    def heal(self) -> None:
        """End every fault."""
        for fault in self.faults:
            self.platform.release("ocis", fault)

    def until(self, what: str, look: Callable[[], Any]) -> Any:
        """Return once something holds."""
        return eventually(f"{self.slug}: {what}", look)

    def decide(self, what: str) -> httpx.Response:
        """Decide as an operator does."""
        with self.platform.api("operator") as http:
            return http.post(f"/operations/{self.operation_id}/{what}")


def arrange(cell: Cell) -> None:
    """Bring a tenant's job into its state."""
    match cell.state:
        case "writing":
            cell.inject("hold_before", "POST", f"/{STEP}.")
        case "backing off":
            cell.inject("status", "POST", f"/{STEP}.", status=503, times=None)
        case "needs operator" | "undoing":
            cell.inject("status", "POST", f"/{STEP}.", **REFUSAL)
        case "settling":
            cell.inject("lose_answer", "POST", f"/{STEP}.")
    if cell.state == "undoing":
        cell.inject("status", "DELETE", "/ocis.group_undo.", status=503, times=None)
    with cell.platform.api() as http:
        answer = http.post("/tenants", json=order(cell.slug))
        assert answer.status_code == 202, answer.text
        cell.operation_id = answer.json()["id"]
        cell.tenant = http.get(f"/tenants/{cell.slug}").json()
    match cell.state:
        case "writing":
            cell.until("held", lambda: cell.platform.faults("ocis")[cell.faults[0]]["held"] == 1)
        case "backing off":
            cell.until("backing off", lambda: cell.step(STEP)["attempts"] >= 2)
        case "needs operator":
            cell.until("parked", lambda: cell.operation()["state"] == "needsOperator")
        case "undoing":
            cell.until("parked", lambda: cell.operation()["state"] == "needsOperator")
            assert cell.decide("cancel").status_code == 202
            cell.until("being undone", lambda: cell.step("ocis.group_undo")["attempts"] >= 2)
        case "settling":
            cell.until("active", lambda: cell.read_tenant()["status"] == "active")
        case "ended":
            cell.until("ended", lambda: cell.operation()["closedAt"] is not None)
    cell.before = cell.operation()


def act(cell: Cell) -> None:
    """Let happen what the cell is about."""
    workflow = cell.workflow_id
    match cell.action:
        case "retry" | "cancel":
            cell.answer = _told(cell.decide(cell.action))
        case "skip":
            cell.answer = _told(cell.decide(f"steps/{STEP}/skip"))
        case "decision lost":
            cell.answer = _told(cell.decide("retry" if cell.state == "needs operator" else "cancel"))
        case "terminate":
            done = cell.platform.temporal("workflow", "terminate", "-w", workflow, "--reason", "by hand")
            cell.answer = "done" if done.returncode == 0 else "refused"
        case "reset":
            done = cell.platform.temporal(
                "workflow", "reset", "-w", workflow, "--type", "FirstWorkflowTask", "--reason", "by hand"
            )
            cell.answer = "done" if done.returncode == 0 else f"refused: {done.stderr}"


def conclude(cell: Cell) -> None:
    """Heal the world when it may be healed, wait for the end, and say what came of it."""
    if cell.answer == "202" and cell.state in ("writing", "backing off", "undoing") and cell.action != "retry":
        cell.until("being undone", lambda: cell.operation()["cancelRequestedAt"])
        if cell.state == "writing":
            cell.until("given up", lambda: cell.step(STEP)["state"] == "compensating")
    if (cell.state, cell.action) == ("writing", "reset"):
        cell.until("tried again", lambda: cell.step(STEP)["attempts"] >= 2)
    if cell.action == "worker killed" and cell.state == "needs operator":
        assert cell.operation()["state"] == "needsOperator"
        cell.answer = "needsOperator"
        assert cell.decide("retry").status_code == 202
    if cell.action != "terminate":
        cell.heal()
    ended = cell.until("ended", lambda: (found := cell.operation())["closedAt"] is not None and found)
    # Held until here: nobody can have heard how the attempt ended.
    cell.heal()
    state = ended["state"] + (" once retried" if cell.answer == "needsOperator" else "")
    wrong = _wrong(cell, ended)
    cell.outcome = ", ".join(filter(None, [cell.answer, state, *wrong]))


def _told(answer: httpx.Response) -> str:
    return str(answer.status_code) if answer.is_success else f"{answer.status_code} {answer.json()['code']}"


def _wrong(cell: Cell, ended: dict[str, Any]) -> list[str]:
    """Return what contradicts the state the operation ended in."""
    tenant = cell.read_tenant()
    wrong = []
    if tenant["operation"] is not None:
        wrong.append("the lock is held")
    deadlines = [step["deadline"] for step in cell.before["steps"] if step["deadline"]]
    # Only those who go on leave the attempt its time to end.
    given_up = cell.state == "writing" and cell.action not in ("retry", "skip")
    if given_up and _time(ended["closedAt"]) < _time(min(deadlines)):
        wrong.append("released while an attempt could still write")
    if any(step["state"] in ("running", "retrying", "parked", "compensating", "lost") for step in ended["steps"]):
        wrong.append(f"steps {[(step['name'], step['state']) for step in ended['steps']]}")
    if ended["decisions"]:
        wrong.append("a decision is left")
    if cell.before["closedAt"] is not None and ended != cell.before:
        wrong.append("it was changed after its end")
    match ended["state"]:
        case "completed":
            counts = not_exactly_one(census(cell.platform, tenant))
            skipped = ["ocis space", "ocis space member"] if cell.answer == "202" and cell.action == "skip" else []
            left_out = {name: counts.pop(name, 1) for name in skipped}
            if tenant["status"] != "active" or counts or any(left_out.values()):
                wrong.append(f"tenant {tenant['status']}, not exactly one: {counts} {left_out}")
        case "canceled":
            left = leftovers(cell.platform, cell.tenant, f"admin@{cell.slug}.example")
            if tenant["status"] != "abandoned" or left:
                wrong.append(f"tenant {tenant['status']}, left: {left}")
        case "terminated":
            if tenant["status"] != ("active" if cell.state == "settling" else "pending"):
                wrong.append(f"tenant {tenant['status']}")
            if ended["error"]["code"] != "ended_outside":
                wrong.append(f"error {ended['error']}")
    return wrong


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def play(
    platform: Platform,
    actions: list[str],
    capsys: pytest.CaptureFixture[str],
    between: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Play columns of the matrix, each cell in a thread of its own."""
    cells = [Cell(platform, state, action) for action in actions for state in STATES]
    platform.token("operator")
    platform.token("partner")
    with ThreadPoolExecutor(len(cells)) as pool:
        # What lasts only until an attempt's deadline comes last.
        brief = [cell for cell in cells if cell.state in ("writing", "settling")]
        lasting = [cell for cell in cells if cell not in brief]
        for part in (lasting, brief):
            list(pool.map(arrange, part))
        if between is not None:
            between()
        list(pool.map(act, [*brief, *lasting]))
        if after is not None:
            after()
        list(pool.map(conclude, cells))
    with capsys.disabled():
        print()
        for cell in cells:
            print(f"{cell.state:<16}{cell.action:<16}{cell.outcome}")
    expected = {cell.slug: EXPECTED[cell.state, cell.action] for cell in cells}
    assert {cell.slug: cell.outcome for cell in cells} == expected


def test_the_matrix_is_whole() -> None:
    """Every state meets every action."""
    assert set(EXPECTED) == {(state, action) for state in STATES for action in ACTIONS}


def test_decisions(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    """Retry, skip and cancel move a job on, or are refused and change nothing."""
    play(platform, ["retry", "skip", "cancel"], capsys)


def test_in_temporal(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done to an execution in Temporal ends as the truth, and no lock goes while an attempt may write."""
    play(platform, ["terminate", "reset"], capsys)


def test_worker_killed(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    """A worker that dies changes nothing of how a job ends."""
    play(platform, ["worker killed"], capsys, after=lambda: (platform.kill("worker"), None)[1])


def test_decision_lost(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    """A decision that was accepted while no worker answers, whose API dies at once, is obeyed all the same."""

    def end() -> None:
        platform.kill("api")
        platform.kill("worker")
        eventually("the API is back", lambda: _answers(platform))

    play(platform, ["decision lost"], capsys, between=lambda: platform.freeze("worker"), after=end)


def test_reset_and_canceled_in_temporal(platform: Platform) -> None:
    """Two things at once: an active tenant is not taken apart, and a run that forgot its cancel learns of it again."""
    settling, undoing = Cell(platform, "settling", "reset"), Cell(platform, "undoing", "reset")
    for cell in (settling, undoing):
        cell.action += " and more"
        arrange(cell)
    _reset(settling, "--type", "FirstWorkflowTask")
    assert platform.temporal("workflow", "cancel", "-w", settling.workflow_id).returncode == 0
    # The third task is one before it heard of the cancel, and the cancel is not told again.
    shown = platform.temporal("workflow", "show", "-w", undoing.workflow_id, "--output", "json").stdout
    tasks = [each["eventId"] for each in json.loads(shown)["events"] if each["eventType"] == TASK_COMPLETED]
    _reset(undoing, "--event-id", tasks[2], "--reapply-exclude", "Update")
    for cell in (settling, undoing):
        conclude(cell)
    assert (settling.outcome, undoing.outcome) == ("completed", "canceled")


def _reset(cell: Cell, *where: str) -> None:
    done = cell.platform.temporal("workflow", "reset", "-w", cell.workflow_id, *where, "--reason", "by hand")
    assert done.returncode == 0, done.stderr


def _answers(platform: Platform) -> bool:
    try:
        return httpx.get(f"{platform.facts['api']}/health/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
