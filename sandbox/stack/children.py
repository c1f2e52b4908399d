"""Child processes that live and die with the one who started them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# Whoever ran this long was healthy: its next death starts the backoff anew.
HEALTHY_AFTER_SECONDS = 20.0
STOP_PATIENCE_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ChildSpec:
    """What to run."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def die_with_parent() -> None:
    """Ask the kernel to kill this child when its parent is gone, however it went. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A process that is restarted with growing pauses when it dies, until it is stopped."""

    def __init__(self, spec: ChildSpec, log_file: Path, say: Callable[[str], None]) -> None:
        self.spec = spec
        self._log_file = log_file
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self.on_change: Callable[[], None] = lambda: None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and alive else None

    async def start(self) -> None:
        """Start the process and keep it running."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Ensure that the process has ended: asked first, killed after 15 s."""
        self._stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_PATIENCE_SECONDS)
        except TimeoutError:
            self._say(f"{self.spec.name} did not end in {STOP_PATIENCE_SECONDS:.0f} s and is killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def stopping(self) -> None:
        """Say that the end is wanted, so that a death from now on is no accident."""
        self._stopping = True

    async def _spawn(self) -> None:
        with self._log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.spec.environment},
                preexec_fn=die_with_parent,
            )
        self.on_change()

    async def _keep(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            assert self._process is not None
            started = time.monotonic()
            code = await self._process.wait()
            if time.monotonic() - started > HEALTHY_AFTER_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            # A Ctrl-C reaches the children too: give our own handler the time to say that it is one.
            await asyncio.sleep(pause)
            if self._stopping:
                return
            how = f"signal {-code}" if code < 0 else f"code {code}"
            self._say(f"{self.spec.name} ended with {how}; restarted after {pause:g} s (log: {self._log_file})")
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            await self._spawn()


def record_children(path: Path, children: Sequence[Child]) -> None:
    """Keep who runs: pid and start time together name a process, a pid alone may be reused."""
    rows = []
    for child in children:
        if child.pid is not None:
            with contextlib.suppress(psutil.Error):
                rows.append({"name": child.spec.name, "pid": child.pid, "startedAt": start_time(child.pid)})
    _write_json(path, rows)


def end_leftovers(path: Path, say: Callable[[str], None]) -> None:
    """Ensure that no process that an earlier stack recorded still runs."""
    try:
        rows = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return
    left = []
    for row in rows:
        with contextlib.suppress(psutil.Error):
            if start_time(row["pid"]) == row["startedAt"]:
                process = psutil.Process(row["pid"])
                process.terminate()
                left.append(process)
                say(f"ended {row['name']} (pid {row['pid']}), left over from an earlier run")
    _gone, alive = psutil.wait_procs(left, timeout=STOP_PATIENCE_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_PATIENCE_SECONDS)
    path.unlink(missing_ok=True)


def holder_of_port(port: int) -> str | None:
    """Return who listens on a port of this machine, None if nobody does."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:  # macOS shows them to root only
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            if connection.pid is None:
                return "a process of another user"
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(connection.pid)
                return f"{process.name()} (pid {connection.pid}: {' '.join(process.cmdline())[:120]})"
            return f"pid {connection.pid}"
    return None


def start_time(pid: int) -> float:
    """Return when a process began, in seconds since the epoch: with the pid it names one process for good."""
    return round(psutil.Process(pid).create_time(), 2)


def _write_json(path: Path, content: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2))
    temporary.replace(path)
