"""The real application on a real MongoDB and a real Temporal without a worker: an accepted job stays running."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from pydantic import SecretStr
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from api import live
from api.app import create_app
from runtime.search_attributes import ensure_search_attributes
from runtime.settings import AuthentikSettings, Settings
from runtime.wiring import Store
from sandbox.stack.layout import find_binary
from store import database as store_database
from tests.api.client import MAX_BODY_BYTES, PARTNERS, PEOPLE, PUBLIC_URL, TEMPORAL_UI, Api
from tests.api.issuers import OPERATOR, PORTAL, Issuers
from tests.conftest import TOKEN, make_settings
from tests.store.builders import keep
from tests.support.keys import payload_keys
from tests.support.servers import Mongod, serving

CallFrom = Callable[..., Api]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def issuers() -> AsyncIterator[Issuers]:
    """The issuers that the application trusts."""
    provider = Issuers()
    async with serving(provider.app) as url:
        provider.url = url
        yield provider


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def temporal() -> AsyncIterator[Client]:
    """A real Temporal that nobody works for."""
    server = await WorkflowEnvironment.start_local(dev_server_existing_path=str(find_binary("temporal")))
    async with server:
        await ensure_search_attributes(server.client)
        yield server.client


@pytest.fixture(scope="session")
def api_settings(standins: dict[str, str], mongod: Mongod, issuers: Issuers) -> Settings:
    """Settings of the application under test."""
    return make_settings(
        standins,
        mongod.url,
        public_url=PUBLIC_URL,
        temporal_ui_url=TEMPORAL_UI,
        payload_keys=SecretStr(payload_keys("api-test")),
        trusted_proxies=["10.0.0.0/8"],
        max_body_bytes=MAX_BODY_BYTES,
        authentik=AuthentikSettings(
            url=standins["authentik"],
            token=SecretStr(TOKEN),
            issuer=[issuers.issuer(PORTAL), issuers.issuer(OPERATOR)],
            audience=[PORTAL, OPERATOR],
        ),
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def app(api_settings: Settings, temporal: Client) -> AsyncIterator[FastAPI]:
    """The application, running."""
    async with running(api_settings, temporal.service_client.config.target_host) as application:
        yield application


@contextlib.asynccontextmanager
async def running(settings: Settings, temporal_address: str) -> AsyncIterator[FastAPI]:
    """Run an application on a Temporal for the length of the block."""
    application = create_app(settings)
    with contextlib.ExitStack() as started:
        environment = started.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("TEMPORAL_ADDRESS", temporal_address)
        async with application.router.lifespan_context(application):
            yield application


@pytest_asyncio.fixture(loop_scope="session")
async def call_from(app: FastAPI, issuers: Issuers, store: Store) -> AsyncIterator[CallFrom]:
    """Callers of the application at chosen addresses, among people it knows."""
    await keep(store, "partners", *PARTNERS)
    await keep(store, "users", *PEOPLE)
    async with contextlib.AsyncExitStack() as opened:

        def caller(address: str = "192.0.2.1", application: FastAPI = app) -> Api:
            transport = httpx.ASGITransport(application, raise_app_exceptions=False, client=(address, 40000))
            http = httpx.AsyncClient(transport=transport, base_url="http://api.test")
            opened.push_async_callback(http.aclose)
            return Api(http, issuers)

        yield caller


@pytest.fixture
def api(call_from: CallFrom) -> Api:
    """A caller of the application."""
    return call_from()


@pytest.fixture
def quick_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for nothing that a test does not ask for, and let nothing be mended that should not have been missed."""
    monkeypatch.setattr(store_database, "LONGEST_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(live, "START_OVER_AFTER_SECONDS", 0.02)
    monkeypatch.setattr(live, "LOOK_AGAIN_EVERY_SECONDS", 3600.0)
