"""The object storage client, against a real S3 server and against answers that a bad one gives."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from domain.errors import (
    OutcomeUnknown,
    VendorAuthFailed,
    VendorError,
    VendorRateLimited,
    VendorRejected,
    VendorUnavailable,
)
from integrations.object_storage import ObjectStorage
from sandbox.stack.children import die_with_parent
from sandbox.stack.layout import find_binary
from tests.support.platform import eventually
from tests.support.servers import HOST, free_port, serving


def storage(endpoint: str, bucket: str = "dezky-audit", secret: str = "secret", **options: Any) -> ObjectStorage:
    return ObjectStorage(
        bucket, endpoint=endpoint, region="eu-north-1", access_key="access", secret_key=secret, **options
    )


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server on a folder."""
    folder: Path = tmp_path_factory.mktemp("s3")
    (folder / "dezky-audit").mkdir()
    port = free_port()
    command = [
        str(find_binary("rclone")), "serve", "s3", str(folder), "--addr", f"{HOST}:{port}",
        "--auth-key", "access,secret", "--config", "/dev/null",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent
    ) as process:
        try:
            eventually("the S3 server listens", lambda: _listens(port))
            yield f"http://{HOST}:{port}"
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


async def test_what_was_put_is_read_back(rclone: str) -> None:
    """An object comes back byte for byte, with its size, and a repeated put changes nothing."""
    store = storage(rclone)
    content = bytes(range(256)) * 40
    for _ in range(2):
        await store.put("2026/11/batch.jsonl.gz", content, "application/gzip")
        assert await store.get("2026/11/batch.jsonl.gz") == content
    described = await store.describe("2026/11/batch.jsonl.gz")
    assert described is not None
    assert described.size == len(content)
    store.close()


async def test_absent_is_none(rclone: str) -> None:
    """An object that is not there is an answer, not an error."""
    store = storage(rclone)
    assert await store.get("absent") is None
    assert await store.describe("absent") is None
    await store.check()
    store.close()


async def test_a_missing_bucket_is_no_absent_object(rclone: str) -> None:
    """A bucket that is missing is refused when it is checked."""
    store = storage(rclone, bucket="elsewhere")
    with pytest.raises(VendorRejected):
        await store.check()
    store.close()


async def test_a_refused_connection_is_weather() -> None:
    """Nothing was sent, so even a write has failed for certain."""
    store = storage(f"http://{HOST}:{free_port()}")
    with pytest.raises(VendorUnavailable):
        await store.put("key", b"content")
    store.close()


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """A server that answers each request as the test says, and counts them."""
    script: dict[str, Any] = {"status": 200, "code": "", "seen": 0}

    async def answer(request: Request) -> Response:
        await request.body()
        script["seen"] += 1
        body = f"<Error><Code>{script['code']}</Code><Message>m</Message></Error>" if script["code"] else ""
        return Response(body, script["status"], media_type="application/xml")

    async with serving(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "PUT", "HEAD"])])) as url:
        yield url, script


@pytest.mark.parametrize(
    ("status", "code", "error", "reason"),
    [
        (500, "InternalError", OutcomeUnknown, "a write that failed inside may have been done"),
        (503, "SlowDown", VendorRateLimited, "asked to slow down"),
        (403, "InvalidAccessKeyId", VendorAuthFailed, "the credential is refused"),
        (403, "AccessDenied", VendorRejected, "the credential may not do this"),
        (400, "EntityTooLarge", VendorRejected, "it will never be taken"),
    ],
)
async def test_refusals_of_a_write(
    scripted: tuple[str, dict[str, Any]], status: int, code: str, error: type[VendorError], reason: str
) -> None:
    """Each answer means one thing, and nothing is tried twice."""
    url, script = scripted
    script.update(status=status, code=code)
    store = storage(url)
    with pytest.raises(error) as raised:
        await store.put("key", b"content")
    assert type(raised.value) is error, reason
    assert script["seen"] == 1
    store.close()


async def test_a_failed_read_is_weather(scripted: tuple[str, dict[str, Any]]) -> None:
    """A read changes nothing, so its failure leaves nothing unknown."""
    url, script = scripted
    script.update(status=500, code="InternalError")
    store = storage(url)
    with pytest.raises(VendorUnavailable):
        await store.get("key")
    store.close()


async def test_the_limit_ends_a_call_that_hangs() -> None:
    """A server that takes the request and says nothing leaves the outcome of a write unknown."""
    over, closed = asyncio.Event(), asyncio.Event()

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()
        await writer.wait_closed()
        closed.set()

    server = await asyncio.start_server(hang, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    store = storage(f"http://{HOST}:{port}", limit=timedelta(milliseconds=100))
    with pytest.raises(OutcomeUnknown):
        await store.put("key", b"content")
    # The thread behind the call ends with its connection.
    over.set()
    await closed.wait()
    store.close()
    server.close()
    await server.wait_closed()
