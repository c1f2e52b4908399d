"""How every process of ours starts its loop, hears that it must end, and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn


def run_and_exit(main: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a main coroutine and end the process with what it returns.

    The process ends without running the interpreter's own shutdown: with Temporal's native core loaded that
    sometimes crashes after all work is done, which would turn a success into a failure.
    """
    try:
        code = asyncio.run(main)
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop_event() -> asyncio.Event:
    """Return an event that is set by SIGTERM and by Ctrl-C."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event
