"""Faults on demand: every request to a stand-in passes here, is listed, and meets the faults that match it.

A fault is set by `POST /_sandbox/faults` with the fields of `FaultSpec` and acts on the next `times` matching requests
(or a share of them, or all of them for `seconds`):

| action        | what the caller sees                        | what happens inside                          |
|---------------|---------------------------------------------|----------------------------------------------|
| `refuse`      | the connection closes without an answer     | nothing                                      |
| `delay`       | the answer, `delaySeconds` late             | done at once                                 |
| `status`      | `status` with `body` and `retryAfter`       | nothing                                      |
| `lose_answer` | the connection closes without an answer     | done                                         |
| `hold_before` | nothing until released, then the answer     | done on release, even if the caller has gone |
| `hold_after`  | nothing until released, then the answer     | done at once                                 |
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTROL_PREFIX = "/_sandbox/"
REQUESTS_KEPT = 5000
# A held request whose release never comes must not keep the process from ending.
LONGEST_HOLD_SECONDS = 600.0


class CamelModel(BaseModel):
    """JSON in camelCase, unknown fields refused: a misspelt fault that does nothing would make a test lie."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class FaultSpec(CamelModel):
    """What to do to which requests."""

    action: Literal["refuse", "delay", "status", "lose_answer", "hold_before", "hold_after"]
    method: str | None = Field(default=None, description="HTTP method, any if absent")
    path: str | None = Field(default=None, description="regular expression searched in path?query")
    contains: list[str] = Field(
        default_factory=list,
        description="each must occur in path?query, the X-Request-ID, the Idempotency-Key or the body",
    )
    times: int | None = Field(default=1, ge=1, description="how many matching requests; null = no limit")
    share: float = Field(default=1.0, gt=0, le=1, description="share of the matching requests that it acts on")
    seconds: float | None = Field(default=None, gt=0, description="the fault ends by itself after this time")
    delay_seconds: float = Field(default=0.0, ge=0, le=120)
    status: int = Field(default=503, ge=100, le=599)
    retry_after: int | None = Field(default=None, ge=0, description="seconds, sent as Retry-After")
    body: str = ""
    content_type: str = "text/plain"


class Fault:
    """A set fault, with how often it has acted and who is held by it."""

    def __init__(self, fault_id: str, spec: FaultSpec) -> None:
        self.id = fault_id
        self.spec = spec
        # Compiled here, so that a bad expression is refused when the fault is set, not when a request meets it.
        self._path = re.compile(spec.path) if spec.path is not None else None
        self.left = spec.times
        self.acted = 0
        self.held = 0
        self.ends_at = time.monotonic() + spec.seconds if spec.seconds is not None else None
        self.released = asyncio.Event()

    @property
    def spent(self) -> bool:
        """Whether it acts on no further request."""
        return self.left == 0 or (self.ends_at is not None and time.monotonic() >= self.ends_at)

    def takes(self, request: SeenRequest) -> bool:
        """Decide whether this request meets the fault, and count it if so."""
        if self.spent or (self.spec.method is not None and self.spec.method.upper() != request.method):
            return False
        if self._path is not None and not self._path.search(request.target):
            return False
        haystack = f"{request.target}\n{request.request_id}\n{request.idempotency_key}\n{request.body}"
        if any(needle not in haystack for needle in self.spec.contains):
            return False
        if self.spec.share < 1 and random.random() >= self.spec.share:
            return False
        if self.left is not None:
            self.left -= 1
        self.acted += 1
        return True

    def describe(self) -> dict[str, Any]:
        """Return what `GET /_sandbox/faults` shows of it."""
        return {
            "id": self.id,
            **self.spec.model_dump(by_alias=True),
            "left": self.left,
            "acted": self.acted,
            "held": self.held,
            "spent": self.spent,
            "released": self.released.is_set(),
        }

    async def hold(self) -> None:
        """Wait for the release."""
        self.held += 1
        try:
            await asyncio.wait_for(self.released.wait(), LONGEST_HOLD_SECONDS)
        except TimeoutError:
            pass
        finally:
            self.held -= 1


class SeenRequest:
    """One request as `GET /_sandbox/requests` lists it."""

    def __init__(self, number: int, scope: Scope, body: bytes) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = scope["query_string"].decode("latin-1")
        self.number = number
        self.at = time.time()
        self.method: str = scope["method"]
        self.target: str = scope["path"] + (f"?{query}" if query else "")
        self.request_id = headers.get("x-request-id", "")
        self.idempotency_key = headers.get("idempotency-key", "")
        self.body = body.decode("utf-8", "replace")
        self.fault: str | None = None
        self.status: int | None = None
        self.answer_lost = False

    def describe(self) -> dict[str, Any]:
        """Return what `GET /_sandbox/requests` shows of it; `status` is null while it has not been carried out."""
        return {
            "number": self.number,
            "at": self.at,
            "method": self.method,
            "target": self.target,
            "requestId": self.request_id,
            "idempotencyKey": self.idempotency_key,
            "body": self.body,
            "fault": self.fault,
            "status": self.status,
            "answerLost": self.answer_lost,
        }


class FaultInjector:
    """ASGI wrapper of a stand-in: serves the control paths, lists requests, and acts out faults."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._faults: dict[str, Fault] = {}
        self._fault_numbers = itertools.count(1)
        self._request_numbers = itertools.count(1)
        self._requests: deque[SeenRequest] = deque(maxlen=REQUESTS_KEPT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await _read_body(receive)
        if body is None:
            return
        if scope["path"].startswith(f"{CONTROL_PREFIX}faults") or scope["path"] == f"{CONTROL_PREFIX}requests":
            await self._control(scope, body, send)
            return
        if scope["path"].startswith(CONTROL_PREFIX):
            await self._app(scope, _replay(body), send)
            return
        request = SeenRequest(next(self._request_numbers), scope, body)
        self._requests.append(request)
        fault = next((fault for fault in self._faults.values() if fault.takes(request)), None)
        if fault is None:
            answer = await self._carry_out(request, scope, body)
            await _send_all(send, answer)
            return
        request.fault = fault.id
        if fault.spec.action == "refuse":
            request.answer_lost = True
            await _drop_connection(receive, send)
            return
        try:
            answer = await self._act(fault, request, scope, body)
        except asyncio.CancelledError:
            # At its end uvicorn cancels whom a fault still holds, and would answer with a 500 that nobody asked for.
            if _transport(send) is None:
                raise
            request.answer_lost = True
        if request.answer_lost:
            await _drop_connection(receive, send)
            return
        await _send_all(send, answer)

    async def _act(self, fault: Fault, request: SeenRequest, scope: Scope, body: bytes) -> list[Message]:
        """Carry the request out as the fault wants it and return the answer, which may still have to be lost."""
        spec = fault.spec
        if spec.action == "status":
            request.status = spec.status
            extra = [("retry-after", str(spec.retry_after))] if spec.retry_after is not None else []
            return _answer(spec.status, spec.body.encode(), spec.content_type, extra)
        if spec.action == "hold_before":
            await fault.hold()
        answer = await self._carry_out(request, scope, body)
        if spec.action == "hold_after":
            await fault.hold()
        if spec.action == "delay":
            await asyncio.sleep(spec.delay_seconds)
        request.answer_lost = spec.action == "lose_answer"
        return answer

    async def _carry_out(self, request: SeenRequest, scope: Scope, body: bytes) -> list[Message]:
        """Run the stand-in on a buffered request, so that it ends whether or not the caller is still there."""
        answer: list[Message] = []

        async def collect(message: Message) -> None:
            answer.append(message)

        await self._app(scope, _replay(body), collect)
        request.status = answer[0]["status"]
        return answer

    async def _control(self, scope: Scope, body: bytes, send: Send) -> None:
        parts = scope["path"].removeprefix(CONTROL_PREFIX).strip("/").split("/")
        match (scope["method"], parts):
            case ("GET", ["requests"]):
                await _answer_json(send, 200, {"items": [request.describe() for request in self._requests]})
            case ("DELETE", ["requests"]):
                self._requests.clear()
                await _answer_json(send, 200, {"items": []})
            case ("GET", ["faults"]):
                await _answer_json(send, 200, {"items": [fault.describe() for fault in self._faults.values()]})
            case ("POST", ["faults"]):
                try:
                    fault = Fault(f"fault-{next(self._fault_numbers)}", FaultSpec.model_validate_json(body))
                except (ValidationError, re.error) as error:
                    await _answer_json(send, 422, {"error": str(error)})
                    return
                self._faults[fault.id] = fault
                await _answer_json(send, 201, fault.describe())
            case ("DELETE", ["faults"]):
                for fault in self._faults.values():
                    fault.released.set()
                self._faults.clear()
                await _answer_json(send, 200, {"items": []})
            case ("DELETE" | "POST", ["faults", fault_id, *rest]) if fault_id in self._faults:
                fault = self._faults[fault_id]
                if scope["method"] == "POST" and rest != ["release"]:
                    await _answer_json(send, 404, {"error": "no such control path"})
                    return
                # A released fault holds nobody any more: requests that match later pass.
                fault.left = 0
                fault.released.set()
                if scope["method"] == "DELETE":
                    del self._faults[fault_id]
                await _answer_json(send, 200, fault.describe())
            case _:
                await _answer_json(send, 404, {"error": "no such control path"})


async def _read_body(receive: Receive) -> bytes | None:
    """Return the whole body, or None if the caller went away before it was complete: no server acts on a part."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    return b"".join(chunks)


def _replay(body: bytes) -> Receive:
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _send_all(send: Send, answer: list[Message]) -> None:
    for message in answer:
        await send(message)


def _answer(status: int, body: bytes, content_type: str, extra: Iterable[tuple[str, str]] = ()) -> list[Message]:
    headers = [("content-type", content_type), ("content-length", str(len(body))), *extra]
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return [
        {"type": "http.response.start", "status": status, "headers": encoded},
        {"type": "http.response.body", "body": body},
    ]


async def _answer_json(send: Send, status: int, content: Any) -> None:
    await _send_all(send, _answer(status, json.dumps(content).encode(), "application/json"))


class AnswerLost(ConnectionError):
    """Raised towards an in-process caller (a test's ASGI transport), which has no socket to close."""


async def _drop_connection(receive: Receive, send: Send) -> None:
    """Close the caller's connection without an answer."""
    transport = _transport(send)
    if transport is None:
        raise AnswerLost("the stand-in closed the connection without an answer")
    transport.abort()
    # Until uvicorn has noticed, it takes a return without an answer for a bug and writes a 500.
    # At its end it may cancel for a second time meanwhile; by then it has noticed.
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass


def _transport(send: Send) -> asyncio.Transport | None:
    """Return the caller's socket, or None for a caller in this process.

    ASGI has no message that closes a connection: the bound `send` of uvicorn's request cycle leads to the transport.
    """
    return getattr(getattr(send, "__self__", None), "transport", None)
