"""Builds the house from its settings: repositories, clients, activities. The only place where parts meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from temporalio.client import Client

from activities.authentik import AuthentikActivities
from activities.ocis import OcisActivities
from activities.platform import PlatformActivities
from activities.stalwart import StalwartActivities
from activities.stripe import StripeActivities
from domain.breakers import PACES
from domain.provisioning import RetryProfile
from domain.seeds import FLAGS, PLANS, PRICES
from integrations.authentik import AuthentikClient
from integrations.http import build_http_client
from integrations.ocis import OcisClient
from integrations.stalwart import StalwartClient
from integrations.stripe import StripeBilling
from runtime.breaker import Breakers, Prober
from runtime.commits import Commits
from runtime.decisions import Decisions
from runtime.dispatcher import Dispatcher
from runtime.intents import Intents
from runtime.metrics import Metrics
from runtime.recorder import Recorder
from runtime.settings import Settings
from store.audit import AuditRepository
from store.breakers import BreakerRepository
from store.catalog import CatalogRepository, FlagRepository, SubscriptionRepository
from store.database import Database
from store.idempotency import IdempotencyRepository
from store.indexes import INDEXES
from store.operations import OperationRepository
from store.people import PartnerRepository, UserRepository
from store.tenants import TenantRepository


class Store:
    """One repository per collection on one database."""

    def __init__(self, url: str, name: str) -> None:
        self.database = Database(url, name)
        self.operations = OperationRepository(self.database)
        self.tenants = TenantRepository(self.database)
        self.partners = PartnerRepository(self.database)
        self.users = UserRepository(self.database)
        self.catalog = CatalogRepository(self.database)
        self.subscriptions = SubscriptionRepository(self.database)
        self.flags = FlagRepository(self.database)
        self.idempotency = IdempotencyRepository(self.database)
        self.audit = AuditRepository(self.database)
        self.breakers = BreakerRepository(self.database)

    async def prepare(self) -> None:
        """Ensure indexes and seeds; what operators edited stays."""
        await self.database.ensure_indexes(INDEXES)
        await self.catalog.seed(PLANS, PRICES)
        await self.flags.seed(FLAGS)


def build_store(settings: Settings) -> Store:
    """Return the repositories of the configured database."""
    return Store(settings.mongo_url.get_secret_value(), settings.mongo_database)


def build_dispatcher(settings: Settings, store: Store, client: Client) -> Dispatcher:
    """Return what starts intents."""
    return Dispatcher(client, store.database, build_recorder(store), store.audit, settings.operation_profile)


def build_intents(settings: Settings, store: Store, dispatcher: Dispatcher) -> Intents:
    """Return what commits intents."""
    return Intents(
        Commits(store.database, store.idempotency),
        dispatcher,
        operations=store.operations,
        tenants=store.tenants,
        partners=store.partners,
        users=store.users,
        subscriptions=store.subscriptions,
        audit=store.audit,
        assume_domain_proof=settings.domain_proof == "assume",
    )


def build_decisions(store: Store, dispatcher: Dispatcher) -> Decisions:
    """Return what commits decisions about operations."""
    commits = Commits(store.database, store.idempotency)
    return Decisions(store.database, dispatcher, commits, store.operations, store.audit)


def build_recorder(store: Store) -> Recorder:
    """Return what keeps the record of operations and their steps."""
    return Recorder(store.operations, store.tenants, store.audit)


@dataclass
class Vendors:
    """The clients of the outside systems. They belong to the event loop they were made in."""

    authentik: AuthentikClient
    stalwart: StalwartClient
    ocis: OcisClient
    stripe: StripeBilling
    _http: list[httpx.AsyncClient]

    async def aclose(self) -> None:
        """Close every connection."""
        for http in self._http:
            await http.aclose()
        await self.stripe.aclose()


def build_vendors(settings: Settings) -> Vendors:
    """Return the clients of the configured systems; nothing is connected yet."""

    def http(url: str, token: str) -> httpx.AsyncClient:
        return build_http_client(url, {"Authorization": f"Bearer {token}"})

    authentik = http(settings.authentik.url, settings.authentik.token.get_secret_value())
    stalwart = http(settings.stalwart.url, settings.stalwart.token.get_secret_value())
    ocis = http(settings.ocis.url, settings.ocis.token.get_secret_value())
    key = settings.stripe.api_key
    return Vendors(
        authentik=AuthentikClient(authentik),
        stalwart=StalwartClient(stalwart),
        ocis=OcisClient(ocis),
        # Without a key every call would be refused; none is made while billing is dark.
        stripe=StripeBilling(key.get_secret_value() if key is not None else "absent", settings.stripe.api_base),
        _http=[authentik, stalwart, ocis],
    )


def build_breakers(store: Store, profile: RetryProfile) -> Breakers:
    """Return what holds back calls to vendors that refused our credential; one for each process."""
    return Breakers(store.database, store.breakers, store.audit, PACES[profile])


def build_prober(
    settings: Settings, store: Store, vendors: Vendors, breakers: Breakers, decisions: Decisions, metrics: Metrics
) -> Prober:
    """Return what probes those vendors, and has what was held back tried again."""
    probes = {
        "authentik": vendors.authentik.check,
        "stalwart": vendors.stalwart.check_generation,
        "ocis": vendors.ocis.check,
        "stripe": vendors.stripe.check,
    }
    return Prober(breakers, store.operations, decisions, probes, metrics, PACES[settings.operation_profile])


def build_activities(settings: Settings, store: Store, vendors: Vendors) -> dict[str, list[Callable[..., Any]]]:
    """Return the activities by the task queue they run on."""
    platform = PlatformActivities(
        store.database,
        recorder=build_recorder(store),
        tenants=store.tenants,
        users=store.users,
        flags=store.flags,
        subscriptions=store.subscriptions,
        audit=store.audit,
        environment=settings.environment,
        billing_enabled=settings.billing_stripe_enabled,
    )
    authentik = AuthentikActivities(vendors.authentik, store.tenants, store.users)
    stalwart = StalwartActivities(vendors.stalwart, store.tenants, store.users, store.catalog)
    ocis = OcisActivities(vendors.ocis, store.tenants, store.catalog)
    stripe = StripeActivities(
        vendors.stripe,
        tenants=store.tenants,
        users=store.users,
        catalog=store.catalog,
        subscriptions=store.subscriptions,
        days_until_due=settings.stripe.days_until_due,
    )
    return {
        "platform": [
            platform.plan_provision,
            platform.record_step,
            platform.plan_undoing,
            platform.record_tenant_outcome,
            platform.record_tenant_abandoned,
            platform.close_operation,
        ],
        "authentik": [
            authentik.ensure_login_group,
            authentik.ensure_login_user,
            authentik.ensure_login_membership,
            authentik.delete_login_membership,
            authentik.delete_login_user,
            authentik.delete_login_group,
        ],
        "stalwart": [
            stalwart.ensure_mail_role,
            stalwart.delete_mail_role_double,
            stalwart.ensure_mail_domain,
            stalwart.observe_mail_domain_keys,
            stalwart.ensure_mailbox,
            stalwart.delete_mailbox,
            stalwart.delete_mail_domain,
            stalwart.delete_mail_role,
        ],
        "ocis": [
            ocis.ensure_files_group,
            ocis.ensure_space,
            ocis.delete_space_double,
            ocis.ensure_space_quota,
            ocis.ensure_space_member,
            ocis.delete_space,
            ocis.delete_files_group,
        ],
        "stripe": [
            stripe.ensure_customer,
            stripe.delete_customer_double,
            stripe.ensure_product,
            stripe.ensure_price,
            stripe.ensure_subscription,
            stripe.delete_subscription,
            stripe.delete_customer,
        ],
    }
