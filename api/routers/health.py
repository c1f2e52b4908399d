"""Liveness and readiness."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from importlib.metadata import version

from fastapi import APIRouter, Request
from temporalio.service import RPCError

from api.reference import PUBLIC
from domain.errors import Unavailable
from domain.model import Model
from runtime.logging import SERVICE
from runtime.wiring import Store

router = APIRouter(tags=["health"])

PROBE_TIMEOUT = timedelta(seconds=2)


class Liveness(Model):
    """The process answers."""

    status: str
    service: str
    version: str


class Readiness(Model):
    """What the API needs is there."""

    status: str
    mongo: str
    temporal: str


@router.get("/health", openapi_extra=PUBLIC)
async def health() -> Liveness:
    """Say that the process is alive, whatever the rest of the world does."""
    return Liveness(status="ok", service=SERVICE, version=version("dezky-control-plane"))


@router.get("/health/ready", openapi_extra=PUBLIC)
async def ready(request: Request) -> Readiness:
    """Say that MongoDB and Temporal answer; 503 with the one that does not."""
    store: Store = request.app.state.store
    failures = await asyncio.gather(store.database.ping(), _ping_temporal(request), return_exceptions=True)
    for failure in failures:
        if failure is not None:
            raise failure
    return Readiness(status="ok", mongo="ok", temporal="ok")


async def _ping_temporal(request: Request) -> None:
    unavailable = Unavailable("Temporal cannot be reached.", code="temporal_unavailable")
    try:
        async with asyncio.timeout(PROBE_TIMEOUT.total_seconds()):
            healthy = await request.app.state.temporal.service_client.check_health(timeout=PROBE_TIMEOUT)
    except (RPCError, RuntimeError, TimeoutError) as error:
        raise unavailable from error
    if not healthy:
        raise unavailable
