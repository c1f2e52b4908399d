"""Watching an operation: what is sent, to whom, for how long, and at what cost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from pymongo.errors import AutoReconnect
from starlette.types import Message

from api import live as api_live
from api import tokens
from api.live import LiveOperations
from api.routers import events
from domain.operations import Attempt, Failure, Fence, Operation, Step, StepState, step_key
from runtime.clock import utcnow
from runtime.wiring import Store
from store.changes import OperationChanges
from store.database import Document
from tests.api.client import Api, assert_problem
from tests.api.issuers import OPERATOR, PORTAL, Issuers
from tests.api.watching import PATIENCE_SECONDS, close, eventually
from tests.store.builders import build_operation, build_tenant, keep
from tests.support.cursors import change_streams, opened_change_streams
from tests.support.servers import serving
from tests.support.sse import Event, EventReader

pytestmark = pytest.mark.usefixtures("quick_watching")

VENDOR_TEXT = "ldap bind to 10.1.2.3 failed"
STEP = "ocis.space"


@pytest_asyncio.fixture(loop_scope="session")
async def live(app: FastAPI, store: Store) -> AsyncIterator[LiveOperations]:
    """What the application watches with, for this test alone."""
    before = app.state.live
    app.state.live = LiveOperations(OperationChanges(app.state.store.database))
    yield app.state.live
    await app.state.live.aclose()
    app.state.live = before


@pytest_asyncio.fixture(loop_scope="session")
async def watcher(app: FastAPI, api: Api, live: LiveOperations) -> AsyncIterator[Api]:
    """A caller over a real socket, who can read an answer while it is written."""
    limits = httpx.Limits(max_connections=None)
    async with (
        serving(app, lifespan="off") as url,
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False, limits=limits) as http,
    ):
        yield Api(http, api.issuers)


@pytest_asyncio.fixture(loop_scope="session")
async def operation(store: Store) -> Operation:
    """An open operation of a tenant of the partner `nordic`."""
    await keep(store, "tenants", build_tenant(partner_id="partner-nordic"))
    kept = build_operation()
    await keep(store, "operations", kept)
    return kept


class Stream:
    """An answer that is read while it is written."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.reader = EventReader()
        self._lines = response.aiter_lines()

    async def next(self) -> Event:
        """Return the next event."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self._lines:
                event = self.reader.feed(line)
                if event is not None:
                    return event
        raise AssertionError("the stream has ended")

    async def rest(self) -> list[Event]:
        """Return everything up to the end of the stream."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            found = [self.reader.feed(line) async for line in self._lines]
        return [event for event in found if event is not None]

    async def beats(self, count: int) -> None:
        """Return after so many further comments."""
        until = len(self.reader.comments) + count
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self._lines:
                assert self.reader.feed(line) is None
                if len(self.reader.comments) >= until:
                    return
        raise AssertionError("the stream has ended")


@contextlib.asynccontextmanager
async def watching(
    api: Api, operation: Operation, who: str = "nordic", *, after: int | None = None, token: str | None = None
) -> AsyncIterator[Stream]:
    """Watch an operation for the length of the block."""
    headers = {"Authorization": f"Bearer {token or api.token(who)}"}
    if after is not None:
        headers["Last-Event-ID"] = str(after)
    async with api.http.stream("GET", f"/operations/{operation.id}/events", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        yield Stream(response)


async def change(store: Store, operation: Operation, message: str = "") -> None:
    """Change something of an operation that people see."""
    await store.database.run_transaction(lambda session: store.operations.say(operation.id, message, session))


def _scope(api: Api, operation: Operation, spec_version: str = "2.3") -> dict[str, Any]:
    """Return how a server asks the application for the events of an operation."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "method": "GET",
        "path": f"/operations/{operation.id}/events",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {api.token('nordic')}".encode())],
    }


async def test_the_state_comes_first_and_then_every_change_until_the_end(
    watcher: Api, store: Store, operation: Operation
) -> None:
    """Revisions rise, each event is the whole operation, and the stream ends with it."""
    async with watching(watcher, operation) as stream:
        seen = [await stream.next()]
        assert seen[0].data == (await watcher.get(f"/operations/{operation.id}")).json()
        for number in range(3):
            await change(store, operation, f"change {number}")
            seen.append(await stream.next())
            assert seen[-1].data["progress"]["message"] == f"change {number}"
        closed = await close(store, operation)
        seen += await stream.rest()
    assert [event.id for event in seen] == [1, 2, 3, 4, 5]
    assert [event.data["revision"] for event in seen] == [1, 2, 3, 4, 5]
    assert {event.name for event in seen} == {"operation"}
    assert (seen[-1].data["state"], closed.revision) == ("completed", 5)
    assert seen[-1].data["closedAt"] is not None


async def test_the_answer_is_an_event_stream_that_nobody_stores(watcher: Api, operation: Operation) -> None:
    """Proxies must neither keep nor buffer it, and clients know when to come back."""
    async with watching(watcher, operation) as stream:
        await stream.next()
        headers = stream.response.headers
        assert headers["Content-Type"].startswith("text/event-stream")
        assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
        assert headers["X-Request-Id"]
        assert stream.reader.retry == [events.RECONNECT_AFTER_MILLISECONDS]


async def test_what_was_seen_is_not_sent_again(watcher: Api, store: Store, operation: Operation) -> None:
    """After `Last-Event-ID` only later revisions come."""
    await change(store, operation)
    async with watching(watcher, operation, after=1) as stream:
        assert (await stream.next()).id == 2
    async with watching(watcher, operation, after=2) as stream:
        await change(store, operation)
        assert (await stream.next()).id == 3
        await close(store, operation)
        assert [event.id for event in await stream.rest()] == [4]


async def test_an_operation_that_has_ended(watcher: Api, store: Store, operation: Operation) -> None:
    """Its last state is sent once; whoever has it is told not to come again."""
    closed = await close(store, operation)
    for after in (None, closed.revision - 1):
        async with watching(watcher, operation, after=after) as stream:
            assert [event.id for event in await stream.rest()] == [closed.revision]
    for after in (closed.revision, closed.revision + 7):
        answer = await watcher.get(f"/operations/{operation.id}/events", headers={"Last-Event-ID": str(after)})
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["Cache-Control"] == "no-store"


async def test_a_revision_that_is_not_reached_yet_counts_as_none(
    watcher: Api, store: Store, operation: Operation
) -> None:
    """Who has seen more than there is, as before a backup was restored, gets what there is."""
    await change(store, operation)
    for after in (3, 1000):
        async with watching(watcher, operation, after=after) as stream:
            assert (await stream.next()).id == 2
    async with watching(watcher, operation, after=1000) as stream:
        assert (await stream.next()).id == 2
        await close(store, operation)
        assert [event.id for event in await stream.rest()] == [3]


async def test_an_end_between_the_first_read_and_the_watch_is_not_missed(
    watcher: Api, app: FastAPI, store: Store, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes while the answer is being prepared is in it."""
    get = app.state.store.operations.get

    async def get_and_close(operation_id: str) -> Operation | None:
        found: Operation | None = await get(operation_id)
        await close(store, operation)
        return found

    monkeypatch.setattr(app.state.store.operations, "get", get_and_close)
    async with watching(watcher, operation) as stream:
        assert [event.data["state"] for event in await stream.rest()] == ["completed"]


@pytest.mark.parametrize("value", ["", "x", "-1", "1.0", "1e3", "\u0661", "9" * 16, "1 2"])
async def test_a_last_event_id_that_was_never_sent_is_refused(api: Api, operation: Operation, value: str) -> None:
    """Clients send what they got; anything else is a mistake of theirs."""
    headers = [(b"Last-Event-ID", value.encode()), (b"Authorization", f"Bearer {api.token('nordic')}".encode())]
    answer = await api.http.get(f"/operations/{operation.id}/events", headers=headers)
    assert_problem(answer, 400, "malformed")


async def test_unknown_parameters_are_refused(api: Api, operation: Operation) -> None:
    """As everywhere."""
    answer = await api.get(f"/operations/{operation.id}/events", params={"since": "1"})
    assert_problem(answer, 400, "unknown_parameter")


async def test_head_does_not_hang(watcher: Api, operation: Operation) -> None:
    """It answers as GET would, and ends."""
    answer = await watcher.request("HEAD", f"/operations/{operation.id}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert (await watcher.request("HEAD", "/operations/none/events")).status_code == 404


@pytest.mark.parametrize(
    ("who", "status", "code"),
    [
        (None, 401, "unauthenticated"),
        ("retired", 403, "user_deactivated"),
        ("member", 403, "not_allowed"),
        ("terminated", 403, "not_allowed"),
        ("rival", 404, "not_found"),
    ],
)
async def test_strangers_see_nothing(api: Api, operation: Operation, who: str | None, status: int, code: str) -> None:
    """The same people may watch an operation who may read it."""
    assert_problem(await api.get(f"/operations/{operation.id}/events", who), status, code)


async def test_partners_read_no_words_of_vendors(watcher: Api, store: Store, operation: Operation) -> None:
    """Nor ids of workflows, nor links to Temporal; operators do."""
    failed = Step(name=STEP, state=StepState.FAILED, last_error=Failure(code="vendor_rejected", message=VENDOR_TEXT))
    await store.operations._operations.update_one(
        {"_id": operation.id}, {"$set": {f"steps.{step_key(STEP)}": failed.model_dump(by_alias=True)}}
    )
    async with watching(watcher, operation) as partners, watching(watcher, operation, "operator") as operators:
        shown, whole = (await partners.next()).data, (await operators.next()).data
    assert whole["steps"][0]["lastError"]["message"] == VENDOR_TEXT
    assert whole["workflowId"] == operation.workflow_id
    assert whole["links"]["temporalUi"]
    assert VENDOR_TEXT not in str(shown)
    assert shown["steps"][0]["lastError"]["code"] == "vendor_rejected"
    assert (shown["workflowId"], shown["links"]["temporalUi"]) == (None, None)


async def test_a_lost_step_is_an_event_only_when_something_is_written(
    watcher: Api, store: Store, operation: Operation
) -> None:
    """`lost` follows from the clock: clients have the deadline to see it by."""
    now = utcnow()
    attempt = Attempt(fence=Fence(scheduled_at=now, number=1), started_at=now, deadline=now + timedelta(seconds=0.3))
    await store.operations.begin_attempt(operation.id, STEP, attempt.fence, now, attempt.deadline)
    async with watching(watcher, operation) as stream:
        (before,) = (await stream.next()).data["steps"]
        await eventually(lambda: utcnow() > attempt.deadline)
        await change(store, operation)
        (after,) = (await stream.next()).data["steps"]
    assert (before["state"], after["state"]) == ("running", "lost")
    assert before["deadline"] == after["deadline"]


async def test_silence_is_broken_by_comments(
    watcher: Api, store: Store, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies keep a connection that is used, and comments are no events."""
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.05)
    async with watching(watcher, operation) as stream:
        assert (await stream.next()).id == 1
        await stream.beats(3)
        await change(store, operation)
        assert (await stream.next()).id == 2


REVOKED: list[tuple[str, str, Document, Document]] = [
    ("nordic", "users", {"_id": "nordic"}, {"active": False}),
    ("nordic", "users", {"_id": "nordic"}, {"partnerId": None}),
    ("nordic", "partners", {"_id": "partner-nordic"}, {"status": "terminated"}),
    ("nordic", "tenants", {"slug": "acme"}, {"partnerId": "partner-rival"}),
    ("operator", "users", {"_id": "operator"}, {"platformAdmin": False}),
    ("operator", "users", {"_id": "operator"}, {"active": False}),
]


@pytest.mark.parametrize(("who", "collection", "whom", "change_to"), REVOKED)
async def test_a_right_that_is_taken_away_ends_the_stream(
    watcher: Api,
    store: Store,
    operation: Operation,
    monkeypatch: pytest.MonkeyPatch,
    who: str,
    collection: str,
    whom: Document,
    change_to: Document,
) -> None:
    """Within a beat, and coming back is refused; others go on."""
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.05)
    other = "operator" if who == "nordic" else "nordic"
    async with watching(watcher, operation, who) as stream, watching(watcher, operation, other) as bystander:
        await stream.next()
        await stream.beats(1)
        await store.database.collection(collection).update_one(whom, {"$set": change_to})
        assert await stream.rest() == []
        answer = await watcher.get(f"/operations/{operation.id}/events", who)
        assert answer.status_code in (403, 404)
        await close(store, operation)
        assert (await bystander.rest())[-1].data["state"] == "completed"


async def test_a_token_that_expires_ends_the_stream(
    watcher: Api, issuers: Issuers, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the operation goes on."""
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(tokens, "LEEWAY_SECONDS", 0)
    token = issuers.token(PORTAL, "sub-nordic", exp=int(time.time()) + 2)
    async with watching(watcher, operation, token=token) as stream:
        assert [event.id for event in await stream.rest()] == [1]
        assert stream.reader.comments
    answer = await watcher.http.get(f"/operations/{operation.id}/events", headers={"Authorization": f"Bearer {token}"})
    assert_problem(answer, 401, "token_expired")


async def test_who_loses_a_role_reads_what_the_other_one_may(
    watcher: Api, issuers: Issuers, store: Store, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator who is now only a partner's staff goes on watching as such."""
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.05)
    await store.database.collection("users").update_one({"_id": "nordic"}, {"$set": {"platformAdmin": True}})
    token = issuers.token(OPERATOR, "sub-nordic")
    async with watching(watcher, operation, token=token) as stream:
        assert (await stream.next()).data["workflowId"] == operation.workflow_id
        await store.database.collection("users").update_one({"_id": "nordic"}, {"$set": {"platformAdmin": False}})
        await stream.beats(2)
        await change(store, operation)
        assert (await stream.next()).data["workflowId"] is None


async def test_a_check_that_cannot_be_made_refuses_nobody(
    watcher: Api, app: FastAPI, store: Store, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is away the stream stays, and the check is made again."""
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.05)
    async with watching(watcher, operation) as stream:
        await stream.next()
        with monkeypatch.context() as away:

            async def nobody(_: str) -> None:
                raise AutoReconnect("away")

            away.setattr(app.state.store.users, "by_subject", nobody)
            await stream.beats(3)
        await store.database.collection("users").update_one({"_id": "nordic"}, {"$set": {"active": False}})
        assert await stream.rest() == []


async def test_as_many_as_can_be_and_no_more(
    watcher: Api, live: LiveOperations, store: Store, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound people are told to come back, and a place that is left is free again."""
    monkeypatch.setattr(api_live, "MOST_WATCHES", 2)
    async with watching(watcher, operation) as first:
        await first.next()
        async with watching(watcher, operation, "operator") as second:
            await second.next()
            answer = await watcher.get(f"/operations/{operation.id}/events")
            assert_problem(answer, 503, "too_many_watchers")
            assert int(answer.headers["Retry-After"]) > 0
        await eventually(lambda: live._places_taken == 1)
        async with watching(watcher, operation) as third:
            await third.next()


async def test_of_many_who_come_at_once_no_more_get_in(
    app: FastAPI, api: Api, live: LiveOperations, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place is taken before the answer begins, and is free again when its client left before the first byte."""
    monkeypatch.setattr(api_live, "MOST_WATCHES", 3)
    statuses: list[int] = []
    leave = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            if message["status"] == 200:
                await asyncio.Event().wait()

    async def receive() -> Message:
        await leave.wait()
        return {"type": "http.disconnect"}

    burst = [asyncio.create_task(app(_scope(api, operation), receive, send)) for _ in range(10)]
    await eventually(lambda: len(statuses) == len(burst))
    assert sorted(statuses) == [200] * 3 + [503] * 7
    leave.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*burst)
    assert (live._places_taken, live._watches) == (0, {})


async def test_a_place_is_given_back_however_the_answer_ends(
    app: FastAPI, api: Api, live: LiveOperations, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After HEAD, after a client that was gone at once, and after one that could not be written to."""
    monkeypatch.setattr(api_live, "MOST_WATCHES", 1)

    async def gone() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def broken(_: Message) -> None:
        raise OSError("gone")

    for _ in range(2):
        assert (await api.request("HEAD", f"/operations/{operation.id}/events")).status_code == 200
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(_scope(api, operation), gone, send)
    assert not [message for message in sent if message.get("status") == 503]

    async def stays() -> Message:
        await asyncio.Event().wait()
        return {}

    for version in ("2.3", "2.4"):
        with pytest.raises(Exception):  # noqa: B017, PT011 - whichever way it is told
            await app(_scope(api, operation, version), stays, broken)
    assert (live._places_taken, live._watches) == (0, {})


async def test_a_client_that_leaves_leaves_nothing(watcher: Api, live: LiveOperations, operation: Operation) -> None:
    """Neither a watch nor what it would be given."""
    async with watching(watcher, operation) as stream:
        await stream.next()
        assert live._watches
    await eventually(lambda: not live._watches)


async def test_two_hundred_watchers_cost_one_change_stream(
    watcher: Api, store: Store, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the server's own count, over two operations; and all of them see the end."""
    monkeypatch.setattr(api_live, "LINGER_SECONDS", 0.05)
    other = build_operation("other")
    await keep(store, "operations", other)
    opened = await opened_change_streams(store.database)
    async with contextlib.AsyncExitStack() as entered:
        streams = [
            await entered.enter_async_context(watching(watcher, each, "operator"))
            for each in [operation] * 200 + [other] * 5
        ]
        for stream in streams:
            assert (await stream.next()).id == 1
        assert len(await change_streams(store.database)) == 1
        for number in range(5):
            await change(store, operation, str(number))
        await close(store, operation)
        await close(store, other)
        seen = await asyncio.gather(*(stream.rest() for stream in streams))
        assert await opened_change_streams(store.database) == opened + 1
    for each in seen:
        ids = [event.id for event in each]
        assert ids == sorted(set(ids))
        assert each[-1].data["state"] == "completed"
    assert {each[-1].id for each in seen[:200]} == {7}
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await change_streams(store.database):
            await asyncio.sleep(0.02)


async def test_who_comes_after_the_stream_was_closed_opens_it_again(
    watcher: Api, store: Store, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is that somebody comes: nobody waits for a stream that is being closed."""
    monkeypatch.setattr(api_live, "LINGER_SECONDS", 0.0)
    for number in range(1, 6):
        async with watching(watcher, operation) as stream:
            await stream.next()
            await change(store, operation)
            assert (await stream.next()).id == number + 1


async def test_a_slow_client_gets_the_newest_and_the_last(
    app: FastAPI, api: Api, watcher: Api, store: Store, operation: Operation
) -> None:
    """What it had no time for is left out, not kept; the end comes though it was told while the client was busy."""
    busy, sent = asyncio.Event(), EventReader()
    ids: list[int] = []

    async def send(message: Message) -> None:
        for line in message.get("body", b"").decode().split("\n"):
            event = sent.feed(line)
            if event is not None:
                ids.append(event.id)
                await busy.wait()

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    serving_slowly = asyncio.create_task(app(_scope(api, operation), receive, send))
    async with watching(watcher, operation) as quick:
        await eventually(lambda: ids)
        for number in range(20):
            await change(store, operation, str(number))
        last = await close(store, operation)
        await quick.rest()
    busy.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await serving_slowly
    assert ids == [1, last.revision]


async def test_a_server_that_stops_ends_its_streams(watcher: Api, live: LiveOperations, operation: Operation) -> None:
    """At once and properly, so that clients go to another one; whoever still comes in is let go again."""
    async with watching(watcher, operation) as stream:
        await stream.next()
        live.stop()
        assert await stream.rest() == []
    async with watching(watcher, operation) as stream:
        assert await stream.rest() == []
