"""The application: builds what the routes need and mounts them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

import httpx
from fastapi import FastAPI
from pymongo.errors import PyMongoError
from starlette.routing import BaseRoute

from api.errors import install_error_handlers
from api.live import LiveOperations
from api.middleware import RequestContext
from api.reference import install_reference
from api.routers import codec, decisions, events, health, me, operations, tenants
from api.tokens import TokenVerifier
from runtime.logging import configure_logging, get_logger
from runtime.settings import Settings
from runtime.temporal import connect
from runtime.wiring import Store, build_decisions, build_dispatcher, build_intents, build_store
from store.changes import OperationChanges

log = get_logger(__name__)

PREPARE_AGAIN_AFTER_SECONDS = 1.0


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the API. It starts and answers `/health` whatever else is away."""
    settings = settings or Settings()
    configure_logging(as_json=settings.log_format == "json", level=settings.log_level)
    app = FastAPI(
        title="Dezky control plane",
        version=version("dezky-control-plane"),
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.add_middleware(codec.CrossOrigin, origin=codec.ui_origin(settings))
    app.add_middleware(RequestContext, trusted_proxies=settings.trusted_proxies)
    install_error_handlers(app)
    routes: list[BaseRoute] = []
    for module in (health, me, tenants, operations, decisions, events, codec):
        app.include_router(module.router)
        routes += module.router.routes
    app.state.routes = routes
    install_reference(app)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    store = build_store(settings)
    app.state.store = store
    app.state.live = LiveOperations(OperationChanges(store.database))
    app.state.temporal = await connect(settings.key_ring, lazy=True)
    dispatcher = build_dispatcher(settings, store, app.state.temporal)
    app.state.intents = build_intents(settings, store, dispatcher)
    app.state.decisions = build_decisions(store, dispatcher)
    preparing = asyncio.create_task(_prepare(store))
    async with httpx.AsyncClient(trust_env=False) as http:
        app.state.verifier = TokenVerifier(settings.authentik.trusted, http)
        yield
    await app.state.live.aclose()
    preparing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await preparing
    store.database.close()


async def _prepare(store: Store) -> None:
    """Ensure indexes and seeds as soon as the database is there."""
    while True:
        try:
            await store.prepare()
        except PyMongoError as error:
            log.warning("database_not_prepared", error=type(error).__name__)
            await asyncio.sleep(PREPARE_AGAIN_AFTER_SECONDS)
        else:
            log.info("database_prepared")
            return
