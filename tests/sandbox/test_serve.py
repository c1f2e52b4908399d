"""A stand-in as its own process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
AUTHORIZED = {"Authorization": "Bearer secret"}

Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def url() -> str:
    """Return an address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the stand-in, always on the same state, and waits until it answers."""
    started: list[subprocess.Popen[bytes]] = []

    def run() -> subprocess.Popen[bytes]:
        port = url.rpartition(":")[2]
        options = ("--port", port, "--state", str(tmp_path / "data" / "authentik.sqlite"), "--token", "secret")
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.serve", "authentik", *options], cwd=ROOT, stderr=subprocess.PIPE
        )
        started.append(process)
        deadline = time.monotonic() + 20
        while not _answers(url):
            assert process.poll() is None, "the stand-in ended"
            assert time.monotonic() < deadline, "the stand-in does not answer"
            time.sleep(0.02)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/health/ready/", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_killed_stand_in_resumes(start: Start, url: str) -> None:
    """After a kill -9 everything acknowledged is there, and keys are the same."""
    keys_url = f"{url}/application/o/dezky-portal/jwks/"
    killed = start()
    body = {"name": "dezky-tenant-acme"}
    created = httpx.post(f"{url}/api/v3/core/groups/", json=body, headers=AUTHORIZED, trust_env=False).json()
    keys = httpx.get(keys_url, trust_env=False).json()
    killed.kill()
    killed.wait()

    start()
    found = httpx.get(f"{url}/api/v3/core/groups/{created['pk']}/", headers=AUTHORIZED, trust_env=False)
    assert found.json() == created
    assert httpx.get(keys_url, trust_env=False).json() == keys


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order(start: Start, url: str, number: signal.Signals) -> None:
    """A signal ends the process with success and without a word."""
    process = start()
    assert httpx.get(f"{url}/api/v3/core/groups/", headers=AUTHORIZED, trust_env=False).status_code == 200
    process.send_signal(number)
    _, complaint = process.communicate(timeout=10)
    assert (process.returncode, complaint) == (0, b"")


def test_a_held_request_does_not_keep_it_from_ending(start: Start, url: str) -> None:
    """Whoever is held at the end sees the connection close, as if the vendor had crashed."""
    process = start()
    httpx.post(f"{url}/_sandbox/faults", json={"action": "hold_before"}, trust_env=False).raise_for_status()
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(httpx.get, f"{url}/api/v3/core/groups/", headers=AUTHORIZED, trust_env=False)
        deadline = time.monotonic() + 10
        while not httpx.get(f"{url}/_sandbox/faults", trust_env=False).json()["items"][0]["held"]:
            assert time.monotonic() < deadline, "the request is not held"
        process.terminate()
        _, complaint = process.communicate(timeout=10)
        assert isinstance(pending.exception(timeout=10), httpx.TransportError)
    assert process.returncode == 0
    assert b"Traceback" not in complaint
