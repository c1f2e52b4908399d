"""Run one stand-in: `python -m sandbox.serve authentik --port 7710 --state data/authentik.sqlite --token secret`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from sandbox.faults import FaultInjector
from sandbox.state import State

VENDORS = ("authentik", "stalwart", "ocis", "stripe")
# A request that a fault still holds must not keep the process from ending: it then counts as never carried out.
SHUTDOWN_GRACE_SECONDS = 1


class CreateApp(Protocol):
    """What each stand-in exports."""

    def __call__(self, state: State, *, public_url: str, token: str) -> ASGIApp:
        """Build the app on its stored state; `token` is the credential it accepts from the control plane."""


def load(vendor: str) -> CreateApp:
    """Return the factory of a stand-in, importing no other one."""
    match vendor:
        case "authentik":
            from sandbox import authentik

            return authentik.create_app
        case "stalwart":
            from sandbox import stalwart

            return stalwart.create_app
        case "ocis":
            from sandbox import ocis

            return ocis.create_app
        case "stripe":
            from sandbox import stripe

            return stripe.create_app
        case _:
            raise ValueError(f"no stand-in is called {vendor!r}")


def serve(vendor: str, *, host: str, port: int, state_file: Path, token: str, public_url: str | None = None) -> None:
    """Serve a stand-in until SIGTERM or SIGINT; its state is on disk at every moment."""
    # uvicorn shuts down in order and then raises the signal again for the handler that it found: end with success.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: sys.exit(0))
    state_file.parent.mkdir(parents=True, exist_ok=True)
    state = State(state_file)
    try:
        app = load(vendor)(state, public_url=public_url or f"http://{host}:{port}", token=token)
        config = uvicorn.Config(
            FaultInjector(app),
            host=host,
            port=port,
            http="h11",
            access_log=False,
            log_level="warning",
            proxy_headers=False,
            timeout_graceful_shutdown=SHUTDOWN_GRACE_SECONDS,
        )
        uvicorn.Server(config).run()
    finally:
        state.close()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.serve", description="Run one vendor stand-in.")
    parser.add_argument("vendor", choices=VENDORS)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, help="SQLite file, created if absent")
    parser.add_argument("--token", required=True, help="the credential that the stand-in accepts")
    parser.add_argument("--public-url", help="base of the URLs in answers; http://HOST:PORT if absent")
    options = parser.parse_args()
    serve(
        options.vendor,
        host=options.host,
        port=options.port,
        state_file=options.state,
        token=options.token,
        public_url=options.public_url,
    )


if __name__ == "__main__":
    main()
