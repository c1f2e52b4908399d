"""The API, whose starts of workflows never return: `python -m tests.support.stalled_api PORT`.

Whatever it accepts is committed and not started, as if the process died in between.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn

from api.app import create_app
from domain.operations import Operation
from runtime import intents
from runtime.dispatcher import Dispatcher

FOR_EVER = 86_400.0


async def _start(_self: Dispatcher, _operation: Operation) -> None:
    await asyncio.sleep(FOR_EVER)


if __name__ == "__main__":
    Dispatcher.start = _start  # type: ignore[method-assign, assignment]
    intents.START_PATIENCE_SECONDS = FOR_EVER
    uvicorn.run(create_app(), host="127.0.0.1", port=int(sys.argv[1]), log_config=None)
