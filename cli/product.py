"""Runs the parts of the product in the foreground."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

from cli.errors import stop_with
from cli.status import running_facts
from runtime.process import run_and_exit
from sandbox.stack.layout import Files, LayoutError, Ports
from sandbox.stack.stack import Stack

# Set by `dezky up` for its children, and by whoever runs the product elsewhere.
_CONFIGURED_BY = "AUTHENTIK_ISSUER"


def adopt_stack(port_base: int | None, data_dir: Path) -> None:
    """Take the settings of the stack that runs in the data directory, unless the environment has its own."""
    if os.environ.get(_CONFIGURED_BY):
        return
    facts = running_facts(data_dir)
    if facts is None or (port_base is not None and port_base != facts.portBase):
        stop_with("There are no settings in the environment, and no embedded stack runs here. Start it: dezky up")
    try:
        stack = Stack(Ports(facts.portBase), Files(data_dir), lambda _line: None)
    except LayoutError as error:
        stop_with(str(error))
    os.environ.update(stack.environment())
    # `up` may have been given a database that this shell does not know of.
    os.environ.update(MONGO_URL=facts.mongo, MONGO_DATABASE=facts.mongoDatabase)


def run_api() -> None:
    """Serve the API until it is told to stop."""
    from api.app import create_app
    from runtime.settings import Settings

    settings = Settings()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )

    async def serve() -> int:
        server = _Server(config, lambda: app.state.live.stop())
        await server.serve()
        # A port that is taken ends the server before it started, without an exception.
        return 0 if server.started else 1

    run_and_exit(serve())


class _Server(uvicorn.Server):
    """Ends what never ends by itself before it waits for open requests, so that clients go elsewhere at once."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self._end_streams()
        await super().shutdown(sockets)


def run_worker() -> None:
    """Run the worker until it is told to stop."""
    sys.argv = ["worker.py"]
    import worker

    worker.main()
