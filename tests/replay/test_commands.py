"""`dezky history save` and `dezky replay` against a real server that keeps payloads encrypted."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import EventType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.client import Client, WorkflowHistory
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment

import cli.replay
from cli.history import run_save
from cli.replay import AT_A_TIME, Load, Replays, run_replay
from domain.errors import VendorUnavailable
from domain.provisioning import RetryProfile
from runtime.codec import ENCODING, build_data_converter
from runtime.key_ring import CannotOpen
from runtime.replay import ReplayGate, Verdict, in_clear, to_stored
from sandbox.stack.layout import find_binary
from tests.replay.changed import Changes
from tests.replay.save_histories import HISTORIES
from tests.support.keys import key_ring, payload_keys
from tests.support.servers import free_port
from tests.workflows.script import Script, Stage
from workflows.provision_tenant import ProvisionTenant

pytestmark = pytest.mark.timeout(90)

KEY = "tests"
MANY = 30
HAPPY = HISTORIES / "ProvisionTenant" / "happy-path.json"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server() -> AsyncIterator[Client]:
    """A client of a real server, with keys."""
    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(find_binary("temporal")), data_converter=build_data_converter(key_ring(KEY))
    )
    async with environment:
        yield environment.client


@pytest.fixture(autouse=True)
def _way_there(server: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the environment name the server, and the SDK's log be as loud afterwards as before."""
    level = logging.getLogger("temporalio").level
    monkeypatch.setenv("TEMPORAL_ADDRESS", server.service_client.config.target_host)
    monkeypatch.setenv("PAYLOAD_KEYS", payload_keys(KEY))
    yield
    logging.getLogger("temporalio").setLevel(level)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ended(server: Client) -> str:
    """The id of a run that met weather, and has ended."""
    script = Script().fails("ocis.space", VendorUnavailable("ocis", "thunder and lightning"))
    async with Stage(server).working() as stage:
        handle = await stage.start(script, profile=RetryProfile.FAST)
        await handle.result()
    return handle.id


async def for_ever() -> None:
    """Never end by itself."""
    await asyncio.Event().wait()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def many_open(server: Client) -> AsyncIterator[list[str]]:
    """The ids of runs that are open, in the middle of their steps."""
    scripts = [Script(attempts={"ocis.space": [for_ever]}) for _ in range(MANY)]
    async with Stage(server).working() as stage:
        handles = [await stage.start(script) for script in scripts]
        while not all(script.running == {"ocis.space"} for script in scripts):
            await stage.moment()
    await listed(server, MANY)
    yield [handle.id for handle in handles]
    for handle in handles:
        await handle.terminate()
    await listed(server, 0)


async def listed(client: Client, count: int) -> None:
    """Wait until the server lists so many open runs."""
    while (await client.count_workflows("ExecutionStatus = 'Running'")).count != count:
        await asyncio.sleep(0.02)


async def test_saved_history_is_in_clear_and_names_nobody(
    ended: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A saved history is decrypted, replays, and says neither whose machine it ran on nor where its code lies."""
    path = tmp_path / "saved.json"
    assert await run_save(ended, None, path, None, tmp_path) == 0
    said = capsys.readouterr()
    assert said.out == f"{path}\n"
    assert "customer data" in said.err
    text = path.read_text()
    assert "thunder and lightning" in text
    assert base64.b64encode(ENCODING).decode() not in text
    for revealing in ("stackTrace", "encodedAttributes", socket.gethostname(), str(Path.cwd())):
        assert revealing not in text
    assert path.stat().st_mode & 0o777 == 0o600
    assert await run_replay([str(path)], None, tmp_path, all_open=False) == 0
    assert capsys.readouterr().out.startswith(f"{path}: ProvisionTenant, ")


async def test_saved_history_is_never_rewritten(tmp_path: Path) -> None:
    """A file that exists is left as it is."""
    path = tmp_path / "saved.json"
    path.write_text("mine")
    assert await run_save("tenant/acme/x", None, path, None, tmp_path) == 1
    assert path.read_text() == "mine"


async def test_saved_under_the_name_of_the_workflow(
    ended: str, server: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another place a history lies here, named after its workflow; one run of it can be named."""
    monkeypatch.chdir(tmp_path)
    run_id = (await server.get_workflow_handle(ended).describe()).run_id
    assert await run_save(ended, run_id, None, None, tmp_path) == 0
    assert [each.name for each in tmp_path.iterdir()] == [f"{ended.replace('/', '-')}.json"]


LONG = "x" * 300


async def test_an_id_that_is_no_name_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However long and wild an id, it is looked for, and its history would lie under a name that can be."""
    monkeypatch.chdir(tmp_path)
    for workflow_id in (LONG, "\u00e9" * 300):
        assert await run_save(workflow_id, None, None, None, tmp_path) == 2
        assert "there is no such run" in capsys.readouterr().err
    assert await run_replay([LONG, f"{LONG}.json"], None, tmp_path, all_open=False) == 2
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"{LONG}: could not be checked: there is no such run") for line in told)
    assert any(line.startswith(f"{LONG}.json: could not be checked: it cannot be read") for line in told)


async def test_a_long_id_is_saved_under_a_short_name(
    server: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of it that fits into a name is kept."""
    monkeypatch.chdir(tmp_path)
    handle = await server.start_workflow("Nobody", id=LONG, task_queue="nobody")
    try:
        assert await run_save(LONG, None, None, None, tmp_path) == 0
    finally:
        await handle.terminate()
        await listed(server, 0)
    assert [each.name for each in tmp_path.iterdir()] == [f"{'x' * 200}.json"]


async def test_a_name_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told before anything is fetched."""
    assert await run_save("tenant/acme/x", None, tmp_path / LONG, None, tmp_path) == 1
    assert "cannot be written: File name too long." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PAYLOAD_KEYS", "", "no PAYLOAD_KEYS are given"),
        ("PAYLOAD_KEYS", payload_keys("other"), "not among the keys given"),
        ("PAYLOAD_KEYS", "nonsense", "PAYLOAD_KEYS cannot be read"),
        ("TEMPORAL_ADDRESS", f"127.0.0.1:{free_port()}", "Temporal does not answer"),
        ("TEMPORAL_ADDRESS", "127.0.0.1:99999999", "Temporal does not answer"),
        ("TEMPORAL_ADDRESS", "", "No stack runs in"),
    ],
    ids=["no keys", "other keys", "wrong keys", "away", "no address", "nowhere"],
)
async def test_cannot_be_had(
    name: str, value: str, message: str, ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What cannot be fetched or read is told as such, never as a history that does not fit, and nothing is written."""
    monkeypatch.setenv(name, value)
    assert await run_save(ended, None, tmp_path / "saved.json", None, tmp_path) == 2
    assert message in capsys.readouterr().err
    assert await run_replay([ended], None, tmp_path, all_open=False) == 2
    assert message in "".join(capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


async def test_unknown_run(ended: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is not there is told, while others are checked."""
    assert await run_save("tenant/acme/none", None, None, None, tmp_path) == 2
    assert await run_replay([ended, "tenant/acme/none"], None, tmp_path, all_open=False) == 2
    said = capsys.readouterr()
    assert f"{ended}: ProvisionTenant, " in said.out
    assert "tenant/acme/none: could not be checked: there is no such run" in said.out
    assert "2 runs: 1 fit, 0 do not, 1 could not be checked." in said.err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"events": [{"x": 1}]}', '{"events": []}', "\udce9"])
async def test_something_else_in_a_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that holds no history, or is not there, is told, and needs no server."""
    path = tmp_path / "some.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert await run_replay([str(path), "missing.json"], None, tmp_path, all_open=False) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("could not be checked: " in line for line in lines)


@pytest.mark.parametrize(("targets", "all_open"), [([], False), (["x"], True)], ids=["nothing", "both"])
async def test_wrong_arguments(targets: list[str], all_open: bool, tmp_path: Path) -> None:
    """Either runs are named, or all open ones are meant."""
    assert await run_replay(targets, None, tmp_path, all_open=all_open) == 2


async def test_every_open_run_is_replayed(
    many_open: list[str], ended: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every open run is replayed, closed ones are not, and it is said how many."""
    assert await run_replay([], None, tmp_path, all_open=True) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert {line.partition(":")[0] for line in lines} == set(many_open)
    assert ended not in said.out
    assert all(line.endswith(": fits") for line in lines)
    assert f"{MANY} runs: {MANY} fit, 0 do not, 0 could not be checked." in said.err


async def test_open_runs_that_do_not_fit(
    many_open: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before code is deployed that open runs do not fit, one is told which, where, and what to do."""
    changed = Changes(tmp_path, monkeypatch).workflow(ProvisionTenant, "run", "await workflow.sleep(1)")
    monkeypatch.setattr(cli.replay, "WORKFLOWS", [changed])
    assert await run_replay([], None, tmp_path, all_open=True) == 1
    said = capsys.readouterr()
    for each in many_open:
        assert f"{each}: ProvisionTenant, " in said.out
    assert said.out.count("At event 5 the run has the activity plan_provision with the id 1") == MANY
    assert said.out.count('Gate the change with workflow.patched("...")') == MANY
    assert f"{MANY} runs: 0 fit, {MANY} do not, 0 could not be checked." in said.err


async def test_few_histories_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs are open, only a few histories are in memory."""
    held: set[int] = set()
    most = 0

    async def load(number: int) -> WorkflowHistory:
        nonlocal most
        held.add(number)
        most = max(most, len(held))
        await asyncio.sleep(0)
        return WorkflowHistory.from_json(str(number), HAPPY.read_text())

    async def check(history: WorkflowHistory) -> Verdict:
        await asyncio.sleep(0.001)
        held.remove(int(history.workflow_id))
        return Verdict("ProvisionTenant", 1)

    async def sources() -> AsyncIterator[tuple[str, Load]]:
        for number in range(40):
            yield str(number), partial(load, number)

    replays = Replays()
    monkeypatch.setattr(replays._gate, "check", check)
    await replays.check(sources())
    assert replays.summary() == 0
    assert most == AT_A_TIME


async def test_what_was_not_checked_never_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the replay itself breaks, nothing is known of the run."""

    async def check(_self: ReplayGate, _history: WorkflowHistory) -> Verdict:
        raise RuntimeError("broken")

    monkeypatch.setattr(ReplayGate, "check", check)
    assert await run_replay([str(HAPPY)], None, tmp_path, all_open=False) == 2
    assert "could not be checked: RuntimeError: broken" in capsys.readouterr().out


async def test_a_crash_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever breaks, 1 is said of runs only that do not fit."""

    def broken() -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(cli.replay, "workflow_runner", broken)
    assert await run_replay([str(HAPPY)], None, tmp_path, all_open=False) == 2
    assert "ZeroDivisionError: unforeseen" in capsys.readouterr().err


def test_a_start_without_its_input(tmp_path: Path) -> None:
    """The verdict stands alone: what the SDK drops on the way is not told."""
    damaged = json.loads(HAPPY.read_text())
    del damaged["events"][0]["workflowExecutionStartedEventAttributes"]["input"]
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(damaged))
    done = replay(path, tmp_path)
    assert done.returncode == 1
    assert "does not fit" in done.stdout
    assert done.stderr == "1 runs: 0 fit, 1 do not, 0 could not be checked.\n"


@pytest.mark.parametrize(("path", "code"), [(str(HAPPY), 0), (str(HAPPY.parent), 2)], ids=["fits", "is no file"])
def test_exit_code(path: str, code: int, tmp_path: Path) -> None:
    """The command says by its exit code how it went."""
    done = replay(path, tmp_path)
    assert done.returncode == code, done.stderr


def replay(path: str | Path, data_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run the command on a file, without a server."""
    command = [sys.executable, "-m", "cli.main", "replay", str(path), "--data-dir", str(data_dir)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def test_every_kind_of_payload_is_opened() -> None:
    """Inputs, results, memos, headers, failures with their causes, heartbeats, updates, summaries: all are opened."""
    converter = build_data_converter(key_ring(KEY))

    async def one(text: str) -> Payloads:
        return Payloads(payloads=await converter.encode([text]))

    failure = Failure()
    try:
        raise ApplicationError("the message", "the details") from ValueError("the cause")
    except ApplicationError as error:
        await converter.encode_failure(error, failure)
    start, failed, timed_out, updated, done = (HistoryEvent(event_id=number) for number in range(1, 6))
    start.workflow_execution_started_event_attributes.input.CopyFrom(await one("input"))
    start.workflow_execution_started_event_attributes.memo.fields["note"].CopyFrom((await one("memo")).payloads[0])
    start.workflow_execution_started_event_attributes.header.fields["h"].CopyFrom((await one("header")).payloads[0])
    start.user_metadata.summary.CopyFrom((await one("summary")).payloads[0])
    failed.activity_task_failed_event_attributes.failure.CopyFrom(failure)
    last = timed_out.activity_task_timed_out_event_attributes.failure.timeout_failure_info.last_heartbeat_details
    last.CopyFrom(await one("heartbeat"))
    request = updated.workflow_execution_update_accepted_event_attributes.accepted_request
    request.input.args.CopyFrom(await one("update"))
    done.workflow_execution_completed_event_attributes.result.CopyFrom(await one("result"))
    done.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED
    history = WorkflowHistory("x", History(events=[start, failed, timed_out, updated, done]).events)

    stored = to_stored(await in_clear(history, converter))
    for secret in ("input", "memo", "header", "summary", "the details", "heartbeat", "update", "result"):
        assert base64.b64encode(f'"{secret}"'.encode()).decode() in stored
    assert '"message": "the message"' in stored
    assert '"message": "the cause"' in stored
    assert base64.b64encode(ENCODING).decode() not in stored
    assert base64.b64encode(ENCODING).decode() in to_stored(history)
    with pytest.raises(CannotOpen):
        await in_clear(history, build_data_converter(None))
