"""What every test may use: a real MongoDB, the four stand-ins on real sockets, and settings for them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from runtime.settings import AuthentikSettings, OcisSettings, Settings, StalwartSettings, StripeSettings
from runtime.wiring import Store, Vendors, build_vendors
from sandbox import authentik, ocis, stalwart, stripe
from sandbox.state import State
from tests.support.servers import Mongod, running_mongod, serving_standin

TOKEN = "dev-test-token"
DATABASE = "dezky_test"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the developer's shell sets from reaching settings."""
    for name in list(os.environ):
        if name.startswith(
            ("AUTHENTIK_", "STALWART_", "OCIS_", "STRIPE_", "MONGO_", "TEMPORAL_", "BILLING_", "DOMAIN_", "PAYLOAD_")
        ):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A real MongoDB replica set for the whole run."""
    with running_mongod(tmp_path_factory.mktemp("mongo")) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _prepared_store(mongod: Mongod) -> AsyncIterator[Store]:
    store = Store(mongod.url, DATABASE)
    await store.prepare()
    yield store
    await store.database.drop()
    store.database.close()


@pytest_asyncio.fixture(loop_scope="session")
async def store(_prepared_store: Store) -> AsyncIterator[Store]:
    """Repositories on a database that holds nothing but the seeds."""
    yield _prepared_store
    for name in ("tenants", "partners", "users", "subscriptions", "operations", "idempotency_keys", "audit_events",
                 "subject_keys", "breakers", "prices", "flags", "plans"):  # fmt: skip
        await _prepared_store.database.collection(name).delete_many({})
    await _prepared_store.prepare()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def standins() -> AsyncIterator[dict[str, str]]:
    """The URLs of the four stand-ins, each on a real socket with its fault API."""
    async with contextlib.AsyncExitStack() as running:
        urls = {}
        for name, module in (("authentik", authentik), ("stalwart", stalwart), ("ocis", ocis), ("stripe", stripe)):
            state = State()
            running.callback(state.close)
            options: dict[str, Any] = {"dkim_delay_seconds": 0.0} if name == "stalwart" else {}
            app = module.create_app(state, public_url=f"http://{name}.test", token=TOKEN, **options)
            urls[name] = await running.enter_async_context(serving_standin(app))
        yield urls


def make_settings(standins: dict[str, str], mongo_url: str, **changes: Any) -> Settings:
    """Return settings for the stand-ins; anything may be changed by its field name."""
    fields: dict[str, Any] = {
        "environment": "test",
        "mongo_url": mongo_url,
        "mongo_database": DATABASE,
        "domain_proof": "assume",
        "billing_stripe_enabled": True,
        "authentik": AuthentikSettings(
            url=standins["authentik"],
            token=SecretStr(TOKEN),
            issuer=["http://authentik.test/application/o/dezky-portal/"],
            audience=["dezky-portal"],
        ),
        "stalwart": StalwartSettings(url=standins["stalwart"], token=SecretStr(TOKEN)),
        "ocis": OcisSettings(url=standins["ocis"], token=SecretStr(TOKEN)),
        "stripe": StripeSettings(api_key=SecretStr(TOKEN), api_base=standins["stripe"], rate_per_second=1000),
    }
    return Settings(**{**fields, **changes})


@pytest.fixture
def settings(standins: dict[str, str], mongod: Mongod) -> Settings:
    """Settings for the stand-ins and the test database."""
    return make_settings(standins, mongod.url)


@pytest_asyncio.fixture(loop_scope="session")
async def vendors(settings: Settings) -> AsyncIterator[Vendors]:
    """The real clients, connected to the stand-ins."""
    clients = build_vendors(settings)
    yield clients
    await clients.aclose()


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The folder of the project."""
    return Path(__file__).parent.parent
