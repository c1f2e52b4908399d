"""How a request is sent once, and what becomes of it when no usable answer comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from pydantic import BaseModel

from domain.errors import OutcomeUnknown, VendorError, VendorUnavailable
from integrations.call_context import correlation_id, deadline, out_of_time, time_limit
from integrations.http import MESSAGE_LENGTH, build_http_client, call, decode, json_object, retry_after, safe_text
from tests.support.vendor import ANSWER_LOST, NOTHING_SENT, ScriptedVendor, answer

pytestmark = pytest.mark.asyncio

VENDOR = "authentik"
SHORT = timedelta(seconds=0.05)


class Thing(BaseModel):
    """Something that a vendor answers with."""

    size: int


@pytest.fixture(autouse=True)
def _clean_context() -> None:
    correlation_id.set("")
    deadline.set(None)


@asynccontextmanager
async def tcp_server(answer_bytes: bytes | None) -> AsyncIterator[str]:
    """Serve one fixed answer on a free port; None: read the request and never answer."""
    never = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if answer_bytes is None:
            await never.wait()
        else:
            writer.write(answer_bytes)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        never.set()
        server.close()


async def test_any_status_is_returned() -> None:
    """An answer is an answer: its meaning is the client's affair."""
    vendor = ScriptedVendor(answer(503, {"detail": "down"}))
    async with vendor.http() as http:
        response = await call(VENDOR, http, "GET", "/x", write=False)
    assert response.status_code == 503
    assert len(vendor.requests) == 1


async def test_correlation_id_is_sent() -> None:
    """The id of the attempt travels as X-Request-ID."""
    vendor = ScriptedVendor(answer(204))
    correlation_id.set("op-1")
    async with vendor.http() as http:
        await call(VENDOR, http, "GET", "/x", write=False, headers={"Accept-Language": "en"})
    assert vendor.last.headers["X-Request-ID"] == "op-1"
    assert vendor.last.headers["Accept-Language"] == "en"


async def test_no_correlation_id_sends_no_header() -> None:
    """Without an attempt no empty header is sent."""
    vendor = ScriptedVendor(answer(204))
    async with vendor.http() as http:
        await call(VENDOR, http, "GET", "/x", write=False)
    assert "X-Request-ID" not in vendor.last.headers


@pytest.mark.parametrize("error", NOTHING_SENT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("write", [True, False])
async def test_nothing_sent_is_weather(error: Exception, write: bool) -> None:
    """A request that never left may be repeated, a write too."""
    vendor = ScriptedVendor(error)
    async with vendor.http() as http:
        with pytest.raises(VendorUnavailable) as caught:
            await call(VENDOR, http, "POST", "/x", write=write)
    assert caught.value.vendor == VENDOR
    assert len(vendor.requests) == 1


@pytest.mark.parametrize("error", ANSWER_LOST, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("write", "expected"), [(True, OutcomeUnknown), (False, VendorUnavailable)])
async def test_lost_answer(error: Exception, write: bool, expected: type[VendorError]) -> None:
    """A sent write without an answer may have been done; a read just failed; neither is repeated here."""
    vendor = ScriptedVendor(error)
    async with vendor.http() as http:
        with pytest.raises(expected) as caught:
            await call(VENDOR, http, "POST", "/x", write=write)
    assert type(caught.value) is expected
    assert len(vendor.requests) == 1


async def test_refused_by_a_real_socket() -> None:
    """A closed port is "cannot be reached", also for a write."""
    async with tcp_server(b"") as url:
        pass
    async with build_http_client(url) as http:
        with pytest.raises(VendorUnavailable):
            await call(VENDOR, http, "POST", "/x", write=True)


async def test_dropped_by_a_real_socket() -> None:
    """A connection closed without an answer leaves the outcome of a write unknown."""
    async with tcp_server(b"") as url, build_http_client(url) as http:
        with pytest.raises(OutcomeUnknown):
            await call(VENDOR, http, "POST", "/x", write=True, json={"a": 1})


async def test_cut_body_of_a_real_socket() -> None:
    """Half an answer is none."""
    cut = b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{"
    async with tcp_server(cut) as url, build_http_client(url) as http:
        with pytest.raises(OutcomeUnknown):
            await call(VENDOR, http, "POST", "/x", write=True)


async def test_undecodable_body_of_a_real_socket() -> None:
    """A body that breaks its own content encoding is no answer either."""
    broken = b"HTTP/1.1 201 Created\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    async with tcp_server(broken) as url, build_http_client(url) as http:
        with pytest.raises(OutcomeUnknown):
            await call(VENDOR, http, "POST", "/x", write=True)


@pytest.mark.parametrize(("write", "expected"), [(True, OutcomeUnknown), (False, VendorUnavailable)])
async def test_total_limit(write: bool, expected: type[VendorError]) -> None:
    """A vendor that never answers is given up after the total limit."""
    async with tcp_server(None) as url, build_http_client(url) as http:
        with pytest.raises(expected) as caught:
            await call(VENDOR, http, "POST", "/x", write=write, limit=SHORT)
    assert type(caught.value) is expected


async def test_deadline_comes_before_the_limit() -> None:
    """The deadline of the attempt ends a call although its own limit is far away."""
    async with tcp_server(None) as url, build_http_client(url) as http:
        deadline.set(asyncio.get_running_loop().time() + SHORT.total_seconds())
        with pytest.raises(OutcomeUnknown):
            await call(VENDOR, http, "POST", "/x", write=True)
        assert out_of_time()


async def test_passed_deadline_sends_nothing() -> None:
    """After the deadline nothing is sent, so that a write is known not to have been done."""
    vendor = ScriptedVendor(answer(204))
    deadline.set(asyncio.get_running_loop().time())
    async with vendor.http() as http:
        with pytest.raises(VendorUnavailable):
            await call(VENDOR, http, "POST", "/x", write=True)
    assert vendor.requests == []


async def test_cancellation_passes_through() -> None:
    """Who cancels the caller sees a cancellation, not a vendor's failure."""
    async with tcp_server(None) as url, build_http_client(url) as http:
        task = asyncio.create_task(call(VENDOR, http, "POST", "/x", write=True))
        await asyncio.sleep(SHORT.total_seconds())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_time_limit_takes_the_default_without_a_deadline() -> None:
    """Without a deadline the default ends the block, and a late deadline does not prolong it."""
    for end in (None, asyncio.get_running_loop().time() + 60):
        deadline.set(end)
        with pytest.raises(TimeoutError):
            async with time_limit(SHORT):
                await asyncio.sleep(10)


async def test_redirects_are_not_followed() -> None:
    """A redirect, which could carry the credential elsewhere, is returned as it is."""
    vendor = ScriptedVendor(answer(307, location="https://elsewhere.example/"))
    async with vendor.http() as http:
        response = await call(VENDOR, http, "GET", "/x", write=False)
    assert response.status_code == 307
    assert len(vendor.requests) == 1


async def test_environment_sets_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not used."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    ok = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with tcp_server(ok) as url, build_http_client(url) as http:
        assert (await call(VENDOR, http, "GET", "/x", write=False)).status_code == 204


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'{"size": "many"}', b"\xff"])
@pytest.mark.parametrize(("write", "expected"), [(True, OutcomeUnknown), (False, VendorUnavailable)])
async def test_decode_refuses(body: bytes, write: bool, expected: type[VendorError]) -> None:
    """A success with a body that is not understood proves nothing, and its content is not repeated."""
    with pytest.raises(expected) as caught:
        decode(VENDOR, Thing, httpx.Response(200, content=body), write=write)
    assert type(caught.value) is expected
    assert caught.value.__cause__ is None
    assert caught.value.http_status == 200


async def test_decode_reads() -> None:
    """A good body becomes a model."""
    assert decode(VENDOR, Thing, httpx.Response(200, json={"size": 3, "new": True}), write=False) == Thing(size=3)


@pytest.mark.parametrize("body", [b"", b"[1]", b"nonsense", b"\xff\xfe"])
async def test_json_object_of_anything_else_is_empty(body: bytes) -> None:
    """Error bodies are read tolerantly."""
    assert json_object(httpx.Response(500, content=body)) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", timedelta(0)),
        ("120", timedelta(seconds=120)),
        (" 7 ", timedelta(seconds=7)),
        ("9" * 400, timedelta(days=1)),
        ("Fri, 20 Nov 2015 07:28:00 GMT", timedelta(0)),
        ("Fri, 20 Nov 2015 07:28:00 -0000", timedelta(0)),
        ("Fri, 20 Nov 2999 07:28:00 GMT", timedelta(days=1)),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("\u0665", None),
    ],
)
async def test_retry_after(value: str, expected: timedelta | None) -> None:
    """Seconds and dates are read, bounded; nonsense is as good as nothing."""
    assert retry_after({"Retry-After": value}) == expected


async def test_retry_after_date_ahead() -> None:
    """A date ahead is the time until then."""
    wait = retry_after({"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)})
    assert wait is not None
    assert timedelta(seconds=80) < wait <= timedelta(seconds=90)


async def test_retry_after_absent() -> None:
    """Most answers have none."""
    assert retry_after({}) is None


@pytest.mark.parametrize(
    "secret",
    [
        "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEvQ cut",
        "Bearer abcdefgh12345678",
        "sk_live_51Habcdef",
        "rk_test_51Habcdef",
        "whsec_abcdef",
        "API_c2VjcmV0c2VjcmV0",
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
    ],
)
async def test_safe_text_hides_secrets(secret: str) -> None:
    """Nothing that looks like a secret stays in a message."""
    text = safe_text(f"refused: {secret}")
    assert "[redacted]" in text
    for word in secret.split():
        assert word not in text or word in ("Bearer", "cut")


@pytest.mark.parametrize("text", ["Token invalid/expired", "basic authentication", "unknown api_version_header"])
async def test_safe_text_keeps_plain_words(text: str) -> None:
    """What merely sounds like a secret stays readable."""
    assert safe_text(text) == text


async def test_safe_text_is_one_bounded_line() -> None:
    """A vendor's page becomes one short line, and a secret at the cut is hidden before it is cut."""
    assert safe_text("a\n  b\tc") == "a b c"
    assert len(safe_text("x" * 5000)) == MESSAGE_LENGTH
    assert "sk_live" not in safe_text("x " * 147 + "sk_live_51Habcdef")
