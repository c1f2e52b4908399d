"""A vendor in a test: prepared answers, given in turn, and the requests that asked for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

from integrations.http import build_http_client

BASE_URL = "https://vendor.example"
Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]

# How a request can fail without an answer: before anything was sent, and after.
NOTHING_SENT = (httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.PoolTimeout("busy"))
ANSWER_LOST = (
    httpx.ReadTimeout("slow"),
    httpx.WriteTimeout("slow"),
    httpx.ReadError("reset"),
    httpx.WriteError("reset"),
    httpx.RemoteProtocolError("closed without an answer"),
)


class ScriptedVendor:
    """Gives its answers in turn, the last one for ever."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            # A fresh one each time: a response belongs to the request it answered.
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        return answer(request)

    @property
    def last(self) -> httpx.Request:
        """The last request."""
        return self.requests[-1]

    @property
    def body(self) -> Any:
        """The JSON body of the last request."""
        return json.loads(self.last.content)

    def http(self) -> httpx.AsyncClient:
        """A client that reaches nobody else."""
        return build_http_client(BASE_URL, transport=httpx.MockTransport(self))


def answer(status: int = 200, body: object = None, **headers: str) -> httpx.Response:
    """Return an answer with a JSON body, or without one; `_` in a header's name stands for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is None:
        return httpx.Response(status, headers=named)
    return httpx.Response(status, headers=named, json=body)
