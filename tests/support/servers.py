"""Real servers for tests: started on free ports, ended by their pid, also when the test run is killed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import uvicorn
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from sandbox.faults import FaultInjector
from sandbox.stack.children import die_with_parent
from sandbox.stack.layout import find_binary

HOST = "127.0.0.1"
PATIENCE_SECONDS = 60.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def free_port_base() -> int:
    """Return a base whose hundred ports are free, outside the range from which the kernel gives ports away."""
    for base in range(20000, 32000, 100):
        with contextlib.ExitStack() as held:
            try:
                for port in range(base, base + 20):
                    held.enter_context(socket.socket()).bind((HOST, port))
            except OSError:
                continue
            return base
    raise RuntimeError("no hundred free ports in a row")


class Mongod:
    """A one-node replica set that can be killed and started again on the same data."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"mongodb://{HOST}:{self.port}/?replicaSet=rs0&directConnection=true"

    def start(self) -> None:
        """Start the server and return when it takes writes."""
        self._directory.mkdir(parents=True, exist_ok=True)
        command = [
            str(find_binary("mongod")), "--bind_ip", HOST, "--port", str(self.port), "--dbpath", str(self._directory),
            "--replSet", "rs0", "--quiet", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25",
            "--setParameter", "transactionLifetimeLimitSeconds=10",
            "--setParameter", "diagnosticDataCollectionEnabled=false",
        ]  # fmt: skip
        with (self._directory / "mongod.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)
        client: MongoClient[dict[str, Any]] = MongoClient(
            f"mongodb://{HOST}:{self.port}/?directConnection=true", serverSelectionTimeoutMS=500
        )
        until = time.monotonic() + PATIENCE_SECONDS
        with client:
            while time.monotonic() < until:
                try:
                    hello = client.admin.command("hello")
                    if hello.get("setName") is None:
                        members = [{"_id": 0, "host": f"{HOST}:{self.port}"}]
                        client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
                    if hello.get("isWritablePrimary"):
                        return
                except PyMongoError:
                    pass
                time.sleep(0.05)
        raise RuntimeError("mongod did not become primary")

    def kill(self) -> None:
        """Kill the server as a power cut would, without a goodbye."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running_mongod(directory: Path) -> Iterator[Mongod]:
    """Run a MongoDB for the length of the block."""
    server = Mongod(directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.asynccontextmanager
async def serving(app: Any, lifespan: Literal["on", "off"] = "on") -> AsyncIterator[str]:
    """Serve an ASGI application on a free port of this process, and give its URL."""
    config = uvicorn.Config(app, host=HOST, port=free_port(), log_config=None, lifespan=lifespan, http="h11", ws="none")
    server = uvicorn.Server(config)
    with contextlib.closing(config.bind_socket()) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            if task.done():
                task.result()
                raise RuntimeError("the server did not start")
            await asyncio.sleep(0.01)
        try:
            yield f"http://{HOST}:{config.port}"
        finally:
            server.should_exit = True
            server.force_exit = True
            await task


@contextlib.asynccontextmanager
async def serving_standin(app: Any) -> AsyncIterator[str]:
    """Serve a stand-in with fault injection on a free port of this process, and give its URL."""
    async with serving(FaultInjector(app)) as url:
        yield url
