"""Payload encryption: what it hides, what it refuses, how keys change, and that a missing key ends no job."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.failure.v1 import Failure
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from runtime.codec import ENCODING, KEY_ID, EncryptingCodec, build_data_converter
from runtime.key_ring import CannotOpen, KeyRing
from sandbox.stack.layout import find_binary
from tests.support.clear_text import stored_by_server, strings_of
from tests.support.keys import key_ring, payload_keys

QUEUE = "codec"
PLAIN = Payload(metadata={"encoding": b"json/plain", "messageType": b"Words"}, data=b'"anna@example.org"')
# Everything a job may carry, each under a word that must not be found.
WORDS = [
    f"clear-{place}" for place in ("input", "heartbeat", "failure", "cause", "result", "update", "memo", "summary")
]


@workflow.defn(name="Carrier", sandboxed=False)
class Carrier:
    """Carries a word in every place that may hold one."""

    def __init__(self) -> None:
        self._told: str | None = None

    @workflow.run
    async def run(self, word: str) -> str:
        await workflow.wait_condition(lambda: self._told is not None)
        try:
            await workflow.execute_activity(
                "fails",
                word,
                start_to_close_timeout=timedelta(seconds=20),
                retry_policy=RetryPolicy(maximum_attempts=2),
            )
        except ActivityError as error:
            if isinstance(error.cause, ApplicationError) and error.cause.type == "told_so":
                return "clear-result"
            raise
        return "nothing failed"

    @workflow.update
    async def tell(self, word: str) -> str:
        self._told = word
        return word

    @tell.validator
    def _check(self, word: str) -> None:
        assert word


@workflow.defn(name="Asking", sandboxed=False)
class Asking:
    """Runs one activity and returns its answer."""

    @workflow.run
    async def run(self, word: str) -> str:
        retry = RetryPolicy(initial_interval=timedelta(milliseconds=100), maximum_interval=timedelta(milliseconds=200))
        answer: str = await workflow.execute_activity(
            "echo",
            word,
            task_queue=f"{QUEUE}-activities",
            start_to_close_timeout=timedelta(seconds=20),
            retry_policy=retry,
            result_type=str,
        )
        return answer


@activity.defn
async def echo(word: str) -> str:
    return word


@dataclass
class Server:
    """A real server and the file it keeps everything in."""

    client: Client
    database: Path

    def with_keys(self, keys: KeyRing | None) -> Client:
        """Return a client with a ring of its own."""
        config = self.client.config()
        config["data_converter"] = build_data_converter(keys)
        return Client(**config)


class Failing:
    """Heartbeats and fails, and the second time looks at what the server has kept of the first."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.stored = b""

    @activity.defn(name="fails")
    async def fail(self, word: str) -> None:
        if activity.info().attempt == 1:
            activity.heartbeat("clear-heartbeat", word)
        else:
            self.stored = stored_by_server(self._server.database)
        try:
            raise ValueError("clear-cause")
        except ValueError as error:
            raise ApplicationError("clear-failure", word, type="told_so") from error


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A real server with its data in a file."""
    database = tmp_path_factory.mktemp("temporal") / "temporal.db"
    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(find_binary("temporal")), dev_server_database_filename=str(database)
    )
    async with environment:
        yield Server(environment.client, database)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def test_a_payload_is_hidden_whole() -> None:
    """Data and metadata are encrypted together; what is left says how and with which key."""
    codec = EncryptingCodec(key_ring("2026-11"))
    first, second = await codec.encode([PLAIN, PLAIN])
    assert dict(first.metadata) == {"encoding": ENCODING, KEY_ID: b"2026-11"}
    assert not any(part in first.SerializeToString() for part in (b"anna", b"json/plain", b"Words"))
    assert first.data != second.data, "two alike must not be seen to be alike"
    assert await codec.decode([first, second]) == [PLAIN, PLAIN]


async def test_what_is_not_marked_passes() -> None:
    """Decoded histories and runs from before encryption are read as they are."""
    codec = EncryptingCodec(key_ring("2026-11"))
    others = [PLAIN, Payload(), Payload(metadata={"encoding": b"binary/null"}), Payload(metadata={KEY_ID: b"gone"})]
    assert await codec.decode(others) == others


async def test_every_changed_byte_is_noticed() -> None:
    """Nonce, ciphertext and tag: whatever was changed, an error comes and never garbage."""
    codec = EncryptingCodec(key_ring("2026-11"))
    (sealed,) = await codec.encode([PLAIN])
    for at in range(len(sealed.data)):
        with pytest.raises(CannotOpen, match="not what was sealed with the key '2026-11'"):
            codec.open(Payload(metadata=sealed.metadata, data=flip(sealed.data, at)))
    for length in (0, 5, 12, 27, len(sealed.data) - 1):
        with pytest.raises(CannotOpen, match="not what was sealed"):
            codec.open(Payload(metadata=sealed.metadata, data=sealed.data[:length]))


async def test_key_id_and_purpose_are_bound() -> None:
    """The same bytes under another id, or sealed for something else, do not open."""
    key = payload_keys("one").partition(":")[2]
    other = payload_keys("filler").partition(":")[2]
    (sealed,) = await EncryptingCodec(KeyRing.parse(f"one:{key}")).encode([PLAIN])
    renamed = Payload(metadata={**sealed.metadata, KEY_ID: b"two"}, data=sealed.data)
    with pytest.raises(CannotOpen, match="not what was sealed with the key 'two'"):
        EncryptingCodec(KeyRing.parse(f"two:{key},one:{other}")).open(renamed)
    ring = key_ring("one")
    key_id, cookie = ring.seal(b"clear", b"codec-session")
    with pytest.raises(CannotOpen):
        EncryptingCodec(ring).open(Payload(metadata={"encoding": ENCODING, KEY_ID: key_id.encode()}, data=cookie))


async def test_keys_change_while_old_payloads_stay_readable() -> None:
    """A new first key encrypts, the old one still decodes; once it is gone, the error names it."""
    (old,) = await EncryptingCodec(key_ring("2026-05")).encode([PLAIN])
    rotated = EncryptingCodec(key_ring("2026-11", "2026-05"))
    (new,) = await rotated.encode([PLAIN])
    assert new.metadata[KEY_ID] == b"2026-11"
    assert await rotated.decode([old, new]) == [PLAIN, PLAIN]
    without = EncryptingCodec(key_ring("2026-11"))
    assert await without.decode([new]) == [PLAIN]
    with pytest.raises(CannotOpen, match="The key '2026-05' is not among the keys given"):
        await without.decode([new, old])
    (before_adding,) = await EncryptingCodec(key_ring("2026-05", "2026-11")).encode([PLAIN])
    assert before_adding.metadata[KEY_ID] == b"2026-05", "a key that is only known does not encrypt yet"


GOOD = payload_keys("a")
REFUSED = {
    "nothing": "",
    "no id": GOOD.partition(":")[2],
    "empty id": GOOD.removeprefix("a"),
    "id with a space": f"a b{GOOD[1:]}",
    "long id": f"{'x' * 65}{GOOD[1:]}",
    "short key": f"a:{base64.b64encode(b's3cret' * 5).decode()}",
    "long key": f"a:{base64.b64encode(b's3cret' * 6).decode()}",
    "no base64": f"a:{'s3cret' * 8}!",
    "not even ASCII": "a:\u00e9",
    "no padding": GOOD.rstrip("="),
    "a comma too many": f"{GOOD},",
    "the id twice": f"{GOOD},a{payload_keys('b')[1:]}",
    "the bytes twice": f"{GOOD},b{GOOD[1:]}",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_a_wrong_ring_is_refused_without_telling_it(text: str) -> None:
    """Misplaced, the key itself may stand where the id is expected: the error says the place only."""
    with pytest.raises(ValueError, match=r"key \d") as raised:
        KeyRing.parse(text)
    assert "s3cret" not in str(raised.value)
    assert GOOD.partition(":")[2] not in str(raised.value)


def test_how_long_an_id_may_be_is_said() -> None:
    """An id of 64 characters is one, and whoever gives a longer one is told why it is none."""
    assert KeyRing.parse(f"{'x' * 64}{GOOD[1:]}").current == "x" * 64
    with pytest.raises(ValueError, match="at most 64 characters"):
        KeyRing.parse(f"{'x' * 65}{GOOD[1:]}")


def test_a_ring_does_not_print() -> None:
    """What is logged by mistake tells no key."""
    assert GOOD.partition(":")[2] not in repr(key_ring("a")) + str(vars(key_ring("a")))


async def carry(server: Server, keys: KeyRing | None, id_: str) -> tuple[str, bytes]:
    """Run a job that carries a word in every place; return its raw history, and what the server stored meanwhile."""
    client, failing = server.with_keys(keys), Failing(server)
    async with Worker(client, task_queue=QUEUE, workflows=[Carrier], activities=[failing.fail]):
        handle = await client.start_workflow(
            "Carrier",
            "clear-input",
            id=id_,
            task_queue=QUEUE,
            memo={"note": "clear-memo"},
            static_summary="clear-summary",
            result_type=str,
        )
        assert await handle.execute_update("tell", "clear-update") == "clear-update"
        assert await handle.result() == "clear-result"
    history = json.loads((await handle.fetch_history()).to_json())
    return "\n".join(text for _, text in strings_of(history)), failing.stored + stored_by_server(server.database)


async def test_nothing_that_a_job_carries_is_stored_in_clear(server: Server) -> None:
    """Neither the raw history nor the server's own file holds a word; without the codec both hold them all."""
    history, stored = await carry(server, key_ring("2026-11"), "encrypted")
    assert b"2026-11" in stored
    assert [word for word in WORDS if word in history] == []
    assert [word for word in WORDS if word.encode() in stored] == []
    history, stored = await carry(server, None, "in-clear")
    # A history does not keep the heartbeat of an attempt that ended.
    assert [word for word in WORDS if word not in history] == ["clear-heartbeat"]
    assert [word for word in WORDS if word.encode() not in stored] == []


async def failed_tasks(handle: WorkflowHandle[Any, Any]) -> int:
    events = [event async for event in handle.fetch_history_events()]
    return sum(event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED for event in events)


async def eventually(look: Any) -> Any:
    async with asyncio.timeout(30):
        while not (found := await look()):
            await asyncio.sleep(0.05)
    return found


async def test_a_worker_without_the_key_fails_the_task_and_not_the_job(server: Server) -> None:
    """The job stands still, says which key is missing, and ends well once a worker has it."""
    old, new = server.with_keys(key_ring("2026-05")), server.with_keys(key_ring("2026-11"))
    handle = await old.start_workflow("Asking", "hello", id="no-key-task", task_queue=QUEUE, result_type=str)
    async with Worker(new, task_queue=QUEUE, workflows=[Asking]):
        await eventually(lambda: failed_tasks(handle))
    assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
    both = server.with_keys(key_ring("2026-11", "2026-05"))
    async with (
        Worker(both, task_queue=QUEUE, workflows=[Asking]),
        Worker(both, task_queue=f"{QUEUE}-activities", activities=[echo]),
    ):
        assert await both.get_workflow_handle("no-key-task", result_type=str).result() == "hello"


async def test_an_activity_worker_without_the_key_fails_the_attempt_and_not_the_step(server: Server) -> None:
    """The attempt is repeated until a worker has the key."""
    old, new = server.with_keys(key_ring("2026-05")), server.with_keys(key_ring("2026-11"))
    async with Worker(old, task_queue=QUEUE, workflows=[Asking]):
        handle = await old.start_workflow("Asking", "hello", id="no-key-attempt", task_queue=QUEUE, result_type=str)

        async def attempts() -> list[str]:
            pending = (await handle.describe()).raw_description.pending_activities
            failures = [each.last_failure for each in pending if each.attempt > 1]
            return [str(await new.data_converter.decode_failure(each)) for each in failures]

        async with Worker(new, task_queue=f"{QUEUE}-activities", activities=[echo]):
            assert "Failed decoding arguments" in (await eventually(attempts))[0]
        async with Worker(old, task_queue=f"{QUEUE}-activities", activities=[echo]):
            assert await handle.result() == "hello"


async def test_a_job_from_before_encryption_goes_on(server: Server) -> None:
    """What was started in clear is read by workers with keys, and answers with encrypted payloads."""
    client = server.with_keys(key_ring("2026-11"))
    handle = await server.with_keys(None).start_workflow("Asking", "hello", id="before", task_queue=QUEUE)
    async with (
        Worker(client, task_queue=QUEUE, workflows=[Asking]),
        Worker(client, task_queue=f"{QUEUE}-activities", activities=[echo]),
    ):
        assert await client.get_workflow_handle(handle.id, result_type=str).result() == "hello"
    events = [event async for event in handle.fetch_history_events()]
    result = events[-1].workflow_execution_completed_event_attributes.result.payloads[0]
    assert result.metadata["encoding"] == ENCODING


async def test_failures_come_back_as_they_were() -> None:
    """Whoever has the keys reads message, type, details and cause of an encrypted failure."""
    converter = build_data_converter(key_ring("2026-11"))
    failure, raised = Failure(), ApplicationError("vendor said no", "detail", type="told_so")
    raised.__cause__ = ApplicationError("because")
    await converter.encode_failure(raised, failure)
    assert (failure.message, failure.stack_trace) == ("Encoded failure", "")
    read = await converter.decode_failure(failure)
    assert isinstance(read, ApplicationError)
    assert (read.message, read.type, list(read.details)) == ("vendor said no", "told_so", ["detail"])
    assert isinstance(read.cause, ApplicationError)
    assert read.cause.message == "because"


def test_without_keys_nothing_changes() -> None:
    """Development without the setting writes what it always wrote."""
    assert build_data_converter(None) is pydantic_data_converter
