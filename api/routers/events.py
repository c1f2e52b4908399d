"""An operation as it changes: server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response, StreamingResponse
from pymongo.errors import PyMongoError
from starlette.types import Receive, Scope, Send

from api.access import Caller
from api.live import LiveOperations
from api.routers.operations import READERS, Reader, is_visible, readable_operation, show
from domain.errors import CallerError, Malformed, NotFound, Unavailable
from domain.operations import Operation
from runtime.wiring import Store

router = APIRouter(tags=["operations"])

RECONNECT_AFTER_MILLISECONDS = 1000
# Proxies commonly close what has been silent for a minute. It is also how long a right outlives its loss.
BEAT_SECONDS = 15.0
CHECK_PATIENCE_SECONDS = 5.0
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_REVISION = re.compile(r"[0-9]{1,15}")
_BEAT = b": still here\n\n"

LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="the last `id` that was received; only later ones are sent")
]


class EventStream(StreamingResponse):
    """A stream of events that holds a place while it is sent, and leaves nothing behind when its client does."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], live: LiveOperations) -> None:
        super().__init__(events, headers=_HEADERS)
        self._events = events
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole answer.

        Raises:
            Unavailable: there is no place; nothing was sent yet.
        """
        with self._live.place():
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send the events until they end or the client leaves."""
        async with contextlib.aclosing(self._events):
            await super().stream_response(send)


@router.get(
    "/operations/{operation_id}/events",
    status_code=200,
    response_class=EventStream,
    responses={
        200: {"description": "Events `operation`: `id` is the revision, `data` the operation as `GET` shows it"},
        204: {"description": "The operation has ended, and `Last-Event-ID` is its last revision"},
    },
)
async def watch_operation(
    request: Request, caller: Reader, operation_id: str, last_event_id: LastEventId = None
) -> Response:
    """Send the operation whole, now and whenever it has changed, until it ends."""
    seen = _revision(last_event_id)
    store: Store = request.app.state.store
    operation = await readable_operation(store, caller, operation_id)
    if operation.closed_at is not None and operation.revision <= seen:
        return Response(status_code=204, headers=_HEADERS)
    if seen > operation.revision:
        # It was sent by a database that has since been set back: what it counted says nothing about this one.
        seen = 0
    return EventStream(_events(request, caller, operation, seen), request.app.state.live)


def _revision(last_event_id: str | None) -> int:
    if last_event_id is None:
        return 0
    if not _REVISION.fullmatch(last_event_id):
        raise Malformed("The Last-Event-ID is none that was sent here.")
    return int(last_event_id)


async def _events(request: Request, caller: Caller, operation: Operation, seen: int) -> AsyncGenerator[bytes, None]:
    """Yield the operation as events, until it ends or the caller may not see it any more."""
    if request.scope["state"]["head"]:
        return
    yield f"retry: {RECONNECT_AFTER_MILLISECONDS}\n\n".encode()
    live: LiveOperations = request.app.state.live
    loop = asyncio.get_running_loop()
    with live.watch(operation.id, after=seen) as watch:
        beat_at = loop.time() + _until_next_beat()
        while True:
            await watch.wait(beat_at - loop.time())
            if loop.time() >= beat_at:
                try:
                    caller = await _admit_again(request, caller, operation)
                except CallerError:
                    return  # who comes back is told why
                yield _BEAT
                beat_at = loop.time() + _until_next_beat()
            snapshot = watch.take()
            if snapshot is not None:
                data = show(request, caller, snapshot).model_dump_json(by_alias=True)
                yield f"id: {snapshot.revision}\nevent: operation\ndata: {data}\n\n".encode()
            elif watch.over:
                return


def _until_next_beat() -> float:
    # Those who came together, as after a restart, do not stay together.
    return BEAT_SECONDS * random.uniform(0.8, 1.0)


async def _admit_again(request: Request, caller: Caller, operation: Operation) -> Caller:
    """Return the caller as they are now.

    Raises:
        CallerError: the token has expired, or the operation is not theirs to see any more.
    """
    try:
        async with asyncio.timeout(CHECK_PATIENCE_SECONDS), request.app.state.live.checks:
            now = await READERS(request)
            if not await is_visible(request.app.state.store, now, operation):
                raise NotFound("There is no such operation.")
            return now
    except (PyMongoError, Unavailable, TimeoutError):
        # Nobody has refused. What is sent comes from the same database, so nothing is sent meanwhile.
        return caller
