"""The breaker of a vendor: what opens it, what it holds back, who probes, and what goes on when it closes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, cast

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr
from pymongo.errors import ServerSelectionTimeoutError
from temporalio.common import MetricMeter
from temporalio.exceptions import ApplicationError

from domain.audit import AuditEvent
from domain.breakers import PACES, Breaker
from domain.errors import (
    BreakerOpen,
    ControlPlaneError,
    OutcomeUnknown,
    Unavailable,
    VendorAuthFailed,
    VendorRateLimited,
    VendorRejected,
    VendorUnavailable,
)
from domain.operations import Failure, Operation, OperationState, Step, StepState, step_key
from domain.provisioning import RetryProfile
from integrations.http import call
from integrations.stripe import StripeBilling
from runtime import breaker as breaking
from runtime.breaker import Breakers, Prober
from runtime.clock import utcnow
from runtime.dispatcher import Dispatcher
from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.wiring import Store, Vendors, build_breakers, build_decisions, build_prober, build_vendors
from tests.activities.jobs import Job, open_job
from tests.store.builders import build_operation, keep
from tests.support.vendor import ScriptedVendor, answer

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

VENDOR = "ocis"
STEP = "ocis.space"
REFUSED = VendorAuthFailed(VENDOR, "ocis answered 401")
LONG_AGO = timedelta(hours=1)


@pytest.fixture
def breakers(store: Store) -> Breakers:
    """The breakers as one process sees them."""
    return build_breakers(store, RetryProfile.FAST)


@pytest_asyncio.fixture(loop_scope="session")
async def job(store: Store) -> Job:
    """A new tenant's job."""
    return await open_job(store)


class Deaf:
    """A dispatcher that leaves every decision where it is kept."""

    async def deliver(self, operation: Operation) -> None:
        """Not now."""
        raise RuntimeError("left to the dispatcher")


class Gauge(Metrics):
    """What was told last of each breaker."""

    def __init__(self) -> None:
        super().__init__(MetricMeter.noop)
        self.told: dict[str, bool] = {}

    def tell_breaker(self, vendor: str, *, is_open: bool) -> None:
        """Keep it."""
        self.told[vendor] = is_open


class Vendor:
    """A vendor whose probe meets what it is told."""

    def __init__(self, store: Store, breakers: Breakers) -> None:
        self.probes = 0
        self.meets: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.gauge = Gauge()
        self._parts = (breakers, store.operations, build_decisions(store, cast("Dispatcher", Deaf())))

    async def probe(self) -> None:
        """Answer."""
        self.probes += 1
        await self.answers.wait()
        if self.meets is not None:
            raise self.meets

    def prober(self) -> Prober:
        """Return the prober of one process."""
        return Prober(*self._parts, {VENDOR: self.probe}, self.gauge, PACES[RetryProfile.FAST])


@pytest.fixture
def vendor(store: Store, breakers: Breakers) -> Vendor:
    """A vendor that takes our credential."""
    return Vendor(store, breakers)


async def open_breaker(breakers: Breakers, error: VendorAuthFailed = REFUSED) -> None:
    """Have a credential refused."""
    with pytest.raises(VendorAuthFailed):
        async with breakers.guarding():
            raise error


async def make_due(store: Store) -> None:
    """Let the time of the next probe come."""
    breaker = await store.breakers.get(VENDOR)
    assert await store.breakers.save(breaker.model_copy(update={"next_probe_at": utcnow() - LONG_AGO}))


async def events(store: Store) -> list[AuditEvent]:
    return await store.audit.find({"resource.type": "vendor"})


async def actions(store: Store) -> list[str]:
    return [event.action for event in await events(store)]


def parked(*steps: tuple[str, str], slug: str = "acme", **changes: Any) -> Operation:
    """Return an operation with steps that were parked for these codes."""
    kept = {
        step_key(name): Step(name=name, state=StepState.PARKED, last_error=Failure(code=code, message="no"))
        for name, code in steps
    }
    return build_operation(slug, **{"state": OperationState.NEEDS_OPERATOR, "steps": kept, **changes})


async def decided(store: Store, operation: Operation) -> list[list[str]]:
    """Return the steps of each decision that was made about an operation."""
    found = await store.operations.get(operation.id)
    assert found is not None
    return [decision.steps for decision in found.decisions]


def away(*_args: object, **_options: object) -> Any:
    raise ServerSelectionTimeoutError("no server")


async def send(scripted: ScriptedVendor) -> None:
    async with scripted.http() as http:
        await call(VENDOR, http, "POST", "/x", write=True)


async def test_closed_calls_pass(breakers: Breakers) -> None:
    """As long as nothing was refused, calls are sent."""
    scripted = ScriptedVendor(answer())
    async with breakers.guarding():
        await send(scripted)
    assert len(scripted.requests) == 1


async def test_open_calls_are_not_sent(store: Store, breakers: Breakers) -> None:
    """While it is open nothing is sent, by whatever process, and the refusal is final; other vendors are called."""
    await open_breaker(breakers)
    scripted = ScriptedVendor(answer())
    for process in (breakers, build_breakers(store, RetryProfile.FAST)):
        with pytest.raises(BreakerOpen) as caught:
            async with process.guarding():
                await send(scripted)
        assert (caught.value.vendor, caught.value.code, caught.value.retryable) == (
            VENDOR,
            "vendor_breaker_open",
            False,
        )
        await process.admit("stripe")
    assert scripted.requests == []


async def test_only_the_block_is_guarded(breakers: Breakers) -> None:
    """A probe, outside of any block, is sent all the same."""
    await open_breaker(breakers)
    scripted = ScriptedVendor(answer())
    await send(scripted)
    assert len(scripted.requests) == 1


async def test_stripe_is_guarded_too(breakers: Breakers) -> None:
    """The vendor's package neither sends past the breaker nor hides its refusal."""
    await open_breaker(breakers, VendorAuthFailed("stripe", "401"))
    scripted = ScriptedVendor(answer(200, {"object": "balance"}))
    stripe = StripeBilling("sk_test_x", "http://stripe.test", transport=httpx.MockTransport(scripted))
    with pytest.raises(BreakerOpen):
        async with breakers.guarding():
            await stripe.check()
    assert scripted.requests == []
    await stripe.check()
    assert len(scripted.requests) == 1
    await stripe.aclose()


async def test_unreadable_is_not_unguarded(store: Store, breakers: Breakers, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the database does not tell, nothing is sent, and the attempt is worth repeating."""
    monkeypatch.setattr(store.breakers, "is_open", away)
    scripted = ScriptedVendor(answer())
    with pytest.raises(Unavailable) as caught:
        async with breakers.guarding():
            await send(scripted)
    assert (caught.value.code, caught.value.retryable, scripted.requests) == ("database_unavailable", True, [])


async def test_slow_is_not_unguarded(store: Store, breakers: Breakers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not answer in time does not tell either."""

    async def hang(_vendor: str) -> bool:
        return await asyncio.Event().wait()

    monkeypatch.setattr(store.breakers, "is_open", hang)
    monkeypatch.setattr(breaking, "LOOK_SECONDS", 0.01)
    with pytest.raises(Unavailable) as caught:
        await breakers.admit(VENDOR)
    assert caught.value.code == "database_unavailable"


async def test_opened_before_the_failure_is_told(job: Job, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the end of the refused attempt is recorded, let alone reported, the breaker is open already."""
    seen: list[bool] = []
    end_attempt = store.operations.end_attempt

    async def look(*args: Any) -> None:
        seen.append(await store.breakers.is_open(VENDOR))
        await end_attempt(*args)

    async def refuse() -> None:
        raise REFUSED

    monkeypatch.setattr(store.operations, "end_attempt", look)
    with pytest.raises(ApplicationError) as caught:
        await job.attempt(STEP, refuse)
    assert (caught.value.type, caught.value.non_retryable, seen) == ("vendor_auth_failed", True, [True])
    assert (await job.step(STEP)).state is StepState.FAILED
    breaker = await store.breakers.get(VENDOR)
    assert breaker.failure == Failure(code="vendor_auth_failed", message="ocis answered 401")
    (event,) = await events(store)
    assert (event.action, event.outcome.value, event.resource.id) == ("vendor.breaker_opened", "failure", VENDOR)
    assert event.at == breaker.opened_at


@pytest.mark.parametrize("activity_id", [f"{STEP}.1", "1"], ids=["step", "no step"])
async def test_every_activity_is_guarded(job: Job, store: Store, breakers: Breakers, activity_id: str) -> None:
    """A step and any other activity are held back alike."""
    await open_breaker(breakers)
    scripted = ScriptedVendor(answer())
    with pytest.raises(ApplicationError) as caught:
        await job.attempt(STEP, lambda: send(scripted), activity_id=activity_id)
    assert (caught.value.type, caught.value.non_retryable) == ("vendor_breaker_open", True)
    assert scripted.requests == []


@pytest.mark.parametrize(
    "error",
    [
        VendorRejected(VENDOR, "no", code="vendor_forbidden"),
        VendorUnavailable(VENDOR, "warming up", code="vendor_warming_up"),
        VendorRateLimited(VENDOR, "slow down"),
        OutcomeUnknown(VENDOR, "lost"),
    ],
    ids=lambda error: error.code,
)
async def test_what_opens_nothing(store: Store, breakers: Breakers, error: ControlPlaneError) -> None:
    """Weather is no refused credential, and neither is a missing permission."""
    with pytest.raises(type(error)):
        async with breakers.guarding():
            raise error
    assert not await store.breakers.is_open(VENDOR)
    assert await events(store) == []


async def test_refused_many_times_is_opened_once(store: Store) -> None:
    """However many calls of however many processes are refused at once, it opens once."""
    processes = [build_breakers(store, RetryProfile.FAST) for _ in range(3)]
    await asyncio.gather(*(open_breaker(process) for process in processes for _ in range(5)))
    assert await actions(store) == ["vendor.breaker_opened"]
    assert (await store.breakers.get(VENDOR)).streak == 0


async def test_a_late_refusal_does_not_open_it_again(store: Store, breakers: Breakers, vendor: Vendor) -> None:
    """What was on its way when it opened may be refused when it has closed; that is yesterday's news."""
    late, go_on = asyncio.Event(), asyncio.Event()

    async def call_late() -> None:
        async with breakers.guarding():
            late.set()
            await go_on.wait()
            raise REFUSED

    calling = asyncio.create_task(call_late())
    await late.wait()
    await open_breaker(breakers)
    await make_due(store)
    await vendor.prober().look(VENDOR)
    go_on.set()
    with pytest.raises(VendorAuthFailed):
        await calling
    assert not await store.breakers.is_open(VENDOR)
    await breakers.admit(VENDOR)
    assert await actions(store) == ["vendor.breaker_opened", "vendor.breaker_closed"]


async def test_a_look_that_a_refusal_overtakes(
    store: Store, breakers: Breakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call for which the database was asked before the refusal is held back, although it said closed."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def closed(_vendor: str) -> bool:
        asked.set()
        await go_on.wait()
        return False

    monkeypatch.setattr(store.breakers, "is_open", closed)
    admitted = asyncio.create_task(breakers.admit(VENDOR))
    await asked.wait()
    await open_breaker(breakers)
    go_on.set()
    with pytest.raises(BreakerOpen):
        await admitted


async def test_an_opening_that_cannot_be_kept(
    job: Job, store: Store, breakers: Breakers, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt is reported all the same, this process holds back calls at once, and the opening is kept later."""
    with monkeypatch.context() as patched:
        patched.setattr(store.breakers, "save", away)
        await open_breaker(breakers)
    assert not await store.breakers.is_open(VENDOR)
    with pytest.raises(BreakerOpen):
        await breakers.admit(VENDOR)
    await vendor.prober().look(VENDOR)
    assert await store.breakers.is_open(VENDOR)
    assert vendor.gauge.told == {VENDOR: True}
    assert await actions(store) == ["vendor.breaker_opened"]


async def test_one_of_many_probes(store: Store, breakers: Breakers, vendor: Vendor) -> None:
    """Of all processes one probes, when it is time and not before; meanwhile and after that nobody else does."""
    await open_breaker(breakers)
    probers = [vendor.prober() for _ in range(4)]
    await asyncio.gather(*(prober.look(VENDOR) for prober in probers))
    assert vendor.probes == 0
    await make_due(store)
    vendor.meets = REFUSED
    vendor.answers.clear()
    looking = [asyncio.create_task(prober.look(VENDOR)) for prober in probers]
    _, probing = await asyncio.wait(looking, return_when=asyncio.FIRST_COMPLETED)
    while len(probing) > 1:
        _, probing = await asyncio.wait(probing, return_when=asyncio.FIRST_COMPLETED)
    await vendor.prober().look(VENDOR)
    assert vendor.probes == 1
    vendor.answers.set()
    await asyncio.gather(*probing)
    breaker = await store.breakers.get(VENDOR)
    assert (breaker.open, breaker.refusals) == (True, 1)


@pytest.mark.parametrize(
    ("error", "still_open", "refusals"),
    [
        (None, False, 0),
        (VendorRejected(VENDOR, "no", code="vendor_forbidden"), False, 0),
        (REFUSED, True, 1),
        (VendorRejected(VENDOR, "no such route", code="generation_mismatch"), True, 1),
        (VendorRateLimited(VENDOR, "too many attempts"), True, 1),
        (VendorUnavailable(VENDOR, "away"), True, 0),
        (OutcomeUnknown(VENDOR, "lost"), True, 0),
    ],
    ids=lambda value: getattr(value, "code", str(value)),
)
async def test_what_a_probe_says(
    store: Store, breakers: Breakers, vendor: Vendor, error: Exception | None, still_open: bool, refusals: int
) -> None:
    """Only a credential that was taken closes it; what is no answer does not count as refusal."""
    await open_breaker(breakers)
    await make_due(store)
    vendor.meets = error
    before = utcnow()
    await vendor.prober().look(VENDOR)
    breaker = await store.breakers.get(VENDOR)
    assert (breaker.open, breaker.refusals) == (still_open, refusals)
    assert vendor.gauge.told == {VENDOR: still_open}
    if still_open:
        assert breaker.next_probe_at is not None
        assert breaker.next_probe_at >= before + PACES[RetryProfile.FAST].pause(VENDOR, refusals)
        assert await actions(store) == ["vendor.breaker_opened"]
    else:
        assert await actions(store) == ["vendor.breaker_opened", "vendor.breaker_closed"]
        await breakers.admit(VENDOR)


async def test_a_prober_that_dies(store: Store, breakers: Breakers, vendor: Vendor) -> None:
    """A probe whose process died is made by another one, once it can have no answer any more."""
    await open_breaker(breakers)
    await make_due(store)
    vendor.answers.clear()
    dying = asyncio.create_task(vendor.prober().look(VENDOR))
    while vendor.probes == 0:
        await asyncio.sleep(0)
    dying.cancel()
    await asyncio.wait([dying])
    breaker = await store.breakers.get(VENDOR)
    assert breaker.next_probe_at is not None
    assert breaker.next_probe_at - utcnow() > breaking.CLAIM / 2
    await make_due(store)
    vendor.answers.set()
    await vendor.prober().look(VENDOR)
    assert not await store.breakers.is_open(VENDOR)


async def test_an_answer_about_an_earlier_opening(store: Store, breakers: Breakers, vendor: Vendor) -> None:
    """A probe that was stuck while it closed and opened again says nothing about the newer refusal."""
    await open_breaker(breakers)
    await make_due(store)
    vendor.answers.clear()
    looking = asyncio.create_task(vendor.prober().look(VENDOR))
    while vendor.probes == 0:
        await asyncio.sleep(0)
    breaker = await store.breakers.get(VENDOR)
    assert await store.breakers.save(breaker.model_copy(update={"opened_at": utcnow() + LONG_AGO}))
    vendor.answers.set()
    await looking
    assert await store.breakers.is_open(VENDOR)
    assert vendor.gauge.told == {VENDOR: True}


async def test_what_goes_on_when_it_closes(store: Store, breakers: Breakers, vendor: Vendor) -> None:
    """The steps that were parked for it are tried again, by the breaker; others wait for whom they waited."""
    mixed = parked(
        ("ocis.space", "vendor_auth_failed"),
        ("ocis.group", "vendor_breaker_open"),
        ("ocis.quota", "foreign_object"),
        ("stripe.customer", "vendor_breaker_open"),
    )
    other = parked(("stalwart.role", "vendor_auth_failed"), slug="other")
    ended = parked(("ocis.space", "vendor_breaker_open"), slug="ended", open=False)
    await keep(store, "operations", mixed, other, ended)
    await open_breaker(breakers)
    await vendor.prober().look(VENDOR)
    assert await decided(store, mixed) == []
    await make_due(store)
    await asyncio.gather(*(vendor.prober().look(VENDOR) for _ in range(3)))
    await asyncio.gather(*(vendor.prober().look(VENDOR) for _ in range(3)))
    assert await decided(store, mixed) == [["ocis.space", "ocis.group"]]
    assert await decided(store, other) == await decided(store, ended) == []
    (event,) = await store.audit.find({"operationId": mixed.id})
    assert (event.action, event.actor.type.value, event.actor.id) == ("operation.retry_requested", "system", "breaker")


async def test_parked_after_it_closed(store: Store, vendor: Vendor) -> None:
    """What a dead process left, or parked too late, is found while it is closed, however many there are."""
    left = [parked((STEP, "vendor_breaker_open"), slug=f"left{number}") for number in range(5)]
    await keep(store, "operations", *left)
    await vendor.prober().look(VENDOR)
    assert [await decided(store, operation) for operation in left] == [[[STEP]]] * 5


async def test_pages(store: Store, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than fit into one look are all found."""
    monkeypatch.setattr(breaking, "BATCH", 2)
    left = [parked((STEP, "vendor_breaker_open"), slug=f"left{number}") for number in range(5)]
    await keep(store, "operations", *left)
    await vendor.prober().look(VENDOR)
    assert [await decided(store, operation) for operation in left] == [[[STEP]]] * 5


async def test_what_keeps_opening_it_waits(store: Store, breakers: Breakers, vendor: Vendor) -> None:
    """An endpoint that refuses although the probe passes must not hold up everybody else again and again."""
    culprit, held_back = parked((STEP, "vendor_auth_failed")), parked((STEP, "vendor_breaker_open"), slug="held")
    now = utcnow()
    breaker = Breaker(vendor=VENDOR, closed_at=now, streak=3)
    assert await store.breakers.save(breaker)
    await keep(store, "operations", culprit, held_back)
    await vendor.prober().look(VENDOR)
    assert (await decided(store, culprit), await decided(store, held_back)) == ([], [[STEP]])
    kept = await store.breakers.get(VENDOR)
    assert await store.breakers.save(kept.model_copy(update={"closed_at": now - LONG_AGO}))
    await vendor.prober().look(VENDOR)
    assert await decided(store, culprit) == [[STEP]]


CHECKS: dict[str, Callable[[Vendors], Awaitable[object]]] = {
    "authentik": lambda vendors: vendors.authentik.check(),
    "stalwart": lambda vendors: vendors.stalwart.check_generation(),
    "ocis": lambda vendors: vendors.ocis.check(),
    "stripe": lambda vendors: vendors.stripe.check(),
}


def with_wrong_credential(settings: Settings, vendor: str) -> Settings:
    name = "api_key" if vendor == "stripe" else "token"
    group = getattr(settings, vendor).model_copy(update={name: SecretStr("wrong")})
    return settings.model_copy(update={vendor: group})


@pytest.mark.parametrize("name", CHECKS)
async def test_every_vendor(store: Store, breakers: Breakers, settings: Settings, vendors: Vendors, name: str) -> None:
    """Each vendor's refusal of a wrong credential opens its breaker, and its probe with the right one closes it."""
    strangers = build_vendors(with_wrong_credential(settings, name))
    if name == "ocis":
        # A server that may be starting gets the benefit of the doubt once.
        strangers.ocis._warm_up = timedelta(0)
        with pytest.raises(VendorUnavailable):
            await strangers.ocis.check()
    with pytest.raises(VendorAuthFailed):
        async with breakers.guarding():
            await CHECKS[name](strangers)
    await strangers.aclose()
    assert await store.breakers.is_open(name)
    opened = await store.breakers.get(name)
    assert await store.breakers.save(opened.model_copy(update={"next_probe_at": utcnow() - LONG_AGO}))
    decisions = build_decisions(store, cast("Dispatcher", Deaf()))
    await build_prober(settings, store, vendors, breakers, decisions, Gauge()).look(name)
    assert not await store.breakers.is_open(name)


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    while not await look():
        await asyncio.sleep(0.01)


async def test_the_loop_outlives_errors(
    store: Store, breakers: Breakers, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is away for a while ends no loop; then the breaker is probed without anybody's help."""
    await open_breaker(breakers)
    failing = asyncio.Event()

    async def fail(*_args: object) -> Breaker:
        failing.set()
        return cast("Breaker", away())

    with monkeypatch.context() as patched:
        patched.setattr(store.breakers, "get", fail)
        running = asyncio.create_task(vendor.prober().run())
        await failing.wait()
    vendor.meets = REFUSED
    await eventually(lambda: _true_of(store, lambda breaker: breaker.refusals >= 1))
    vendor.meets = None
    await eventually(lambda: _true_of(store, lambda breaker: not breaker.open))
    running.cancel()
    await asyncio.wait([running])
    assert await actions(store) == ["vendor.breaker_opened", "vendor.breaker_closed"]


async def _true_of(store: Store, holds: Callable[[Breaker], bool]) -> bool:
    return holds(await store.breakers.get(VENDOR))
