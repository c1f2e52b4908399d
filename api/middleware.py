"""What surrounds every request: its id, its log line, and the client's address."""

from __future__ import annotations

import ipaddress
import re
import time
import urllib.parse

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.clock import new_id
from runtime.logging import get_logger

log = get_logger(__name__)

LONGEST_LOGGED_PATH = 500

_USABLE_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")


class RequestContext:
    """Gives every request an id, carries it into logs and answers, and keeps the client's address."""

    def __init__(self, app: ASGIApp, trusted_proxies: list[str]) -> None:
        self._app = app
        self._proxies = [ipaddress.ip_network(each, strict=False) for each in trusted_proxies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        if head:
            # What GET would answer, without its body; load balancers ask so.
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        offered = headers.get("x-request-id", "")
        request_id = offered if _USABLE_ID.fullmatch(offered) else new_id()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["client_address"] = self.client_address(scope, headers)
        state["head"] = head
        started = time.perf_counter()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            elif head:
                message = {**message, "body": b""}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                milliseconds = round((time.perf_counter() - started) * 1000, 1)
                log.info(
                    "request", method=scope["method"], path=shown_path(scope), status=status, milliseconds=milliseconds
                )

    def client_address(self, scope: Scope, headers: Headers) -> str | None:
        """Return the address of the client.

        `X-Forwarded-For` counts only as far as configured proxies wrote it: it is read from its end, and the first
        address that is not such a proxy is the client. What stands before it was written by the client.
        """
        client = scope.get("client")
        address = client[0] if client else None
        # A proxy may add a line of its own instead of appending to the client's.
        hops = [hop for line in headers.getlist("x-forwarded-for") for part in line.split(",") if (hop := part.strip())]
        while address is not None and hops and self._is_proxy(address):
            address = hops.pop()
        return address

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._proxies)


def shown_path(scope: Scope) -> str:
    """Return the path as it was sent, percent-encoded: decoded, anybody could write control characters into the log."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    # A server may let more pass than a URL may hold.
    return urllib.parse.quote(raw, safe="/%:@!$&'()*+,;=")[:LONGEST_LOGGED_PATH]
