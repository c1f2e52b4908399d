"""`dezky replay`."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from google.protobuf.json_format import ParseError
from temporalio.client import Client, WorkflowHistory
from temporalio.service import RPCError

from cli.errors import say
from cli.history import CannotCheck, connect_client, fetch, key_ring
from runtime.codec import build_data_converter
from runtime.key_ring import CannotOpen
from runtime.replay import ReplayGate, in_clear
from worker import WORKFLOWS, workflow_runner

# How many histories are fetched and held at a time.
AT_A_TIME = 4

Load = Callable[[], Awaitable[WorkflowHistory]]


async def run_replay(targets: Sequence[str], port_base: int | None, data_dir: Path, *, all_open: bool) -> int:
    """Replay histories with this code. Returns 0 if all fit, 1 if some do not, else 2 if some could not be checked."""
    try:
        return await _replay(targets, port_base, data_dir, all_open=all_open)
    except Exception:  # noqa: BLE001 - 1 would say of runs that they do not fit, and nobody knows
        traceback.print_exc()
        return 2


async def _replay(targets: Sequence[str], port_base: int | None, data_dir: Path, *, all_open: bool) -> int:
    if bool(targets) == all_open:
        say("Name workflow ids or files, or give --all-open.")
        return 2
    # The SDK logs each mismatch with its traceback; the verdict says what matters of it.
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)
    # Source: temporalio 1.35 drops this coroutine if a workflow cannot be made, as after a start without its input.
    warnings.filterwarnings("ignore", r"coroutine '.*\.run_workflow' was never awaited", RuntimeWarning)
    only_files = not all_open and all(_is_file(each) for each in targets)
    try:
        client = None if only_files else await connect_client(port_base, data_dir)
    except CannotCheck as error:
        say(str(error))
        return 2
    replays = Replays()
    await replays.check(_sources(client, targets))
    return replays.summary()


def _is_file(target: str) -> bool:
    try:
        return target.endswith(".json") or Path(target).is_file()
    except OSError:
        # The id of a workflow may be longer than the name of a file.
        return False


async def _sources(client: Client | None, targets: Sequence[str]) -> AsyncIterator[tuple[str, Load]]:
    """Yield what each history is called, and how to have it; every open execution's if none is named.

    Raises:
        CannotCheck: the open executions cannot be listed to their end.
    """
    for target in targets:
        if client is None or _is_file(target):
            yield target, partial(_read, Path(target))
        else:
            yield target, partial(fetch, client, target)
    if client is not None and not targets:
        try:
            async for run in client.list_workflows("ExecutionStatus = 'Running'"):
                yield run.id, partial(fetch, client, run.id, run.run_id)
        except RPCError as error:
            raise CannotCheck(f"the open executions could not be listed to their end: {error.message}") from None


async def _read(path: Path) -> WorkflowHistory:
    """Return the history in a file, in clear.

    Raises:
        CannotCheck: it is none, or cannot be opened.
    """
    try:
        events = json.loads(path.read_text())["events"]
        history = WorkflowHistory.from_json(path.stem, {"events": events})
        return await in_clear(history, build_data_converter(key_ring()))
    except OSError as error:
        raise CannotCheck(f"it cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, ParseError) as error:
        raise CannotCheck(f"it is not a history ({type(error).__name__})") from None
    except CannotOpen as error:
        raise CannotCheck(str(error)) from None


class Replays:
    """Replays histories with the worker's workflows and sandbox, tells how each fits, and counts."""

    def __init__(self) -> None:
        self._gate = ReplayGate(WORKFLOWS, workflow_runner())
        self._fit = 0
        self._unfit = 0
        self._unchecked = 0

    async def check(self, sources: AsyncIterator[tuple[str, Load]]) -> None:
        """Check every history, a few at a time."""
        running: set[asyncio.Task[None]] = set()
        try:
            async for name, load in sources:
                if len(running) == AT_A_TIME:
                    _done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running.add(asyncio.create_task(self._check(name, load)))
        except CannotCheck as error:
            self._cannot("--all-open", str(error))
        await asyncio.gather(*running)

    async def _check(self, name: str, load: Load) -> None:
        try:
            verdict = await self._gate.check(await load())
        except (CannotCheck, ValueError) as error:
            self._cannot(name, str(error))
            return
        except Exception as error:  # noqa: BLE001 - what was not checked must never count as fitting
            self._cannot(name, f"{type(error).__name__}: {error}")
            return
        self._fit += verdict.fits
        self._unfit += not verdict.fits
        print(f"{name}: {verdict}".replace("\n", "\n  "), flush=True)

    def _cannot(self, name: str, why: str) -> None:
        self._unchecked += 1
        print(f"{name}: could not be checked: {why}", flush=True)

    def summary(self) -> int:
        """Tell how many fit, and return the exit code."""
        total = self._fit + self._unfit + self._unchecked
        say(f"{total} runs: {self._fit} fit, {self._unfit} do not, {self._unchecked} could not be checked.")
        if self._unfit:
            return 1
        return 2 if self._unchecked else 0
