"""Holds back calls to a vendor that refused our credential, probes it, and lets what was held back go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pymongo.errors import PyMongoError

from domain.audit import Actor, ActorType, AuditEvent, Outcome, Resource
from domain.breakers import Breaker, Pace, ProbeOutcome
from domain.errors import BreakerOpen, OutcomeUnknown, Unavailable, VendorAuthFailed, VendorError, VendorUnavailable
from domain.operations import Failure
from integrations import call_context
from runtime.clock import new_id, utcnow
from runtime.decisions import Decisions
from runtime.failures import describe
from runtime.logging import get_logger
from runtime.metrics import Metrics
from store.audit import AuditRepository
from store.breakers import BreakerRepository
from store.database import Database, Session
from store.operations import OperationRepository

log = get_logger(__name__)

ACTOR = "breaker"
LOOK_SECONDS = 3.0
# Longer than a probe, which ends like every call of a vendor.
CLAIM = timedelta(seconds=30)
BATCH = 200
# A credential that may not do what the probe does is a credential that was taken.
FORBIDDEN = "vendor_forbidden"

Probe = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class _Refusal:
    """A refused credential, and when the activity that met it had begun."""

    failure: Failure
    begun_at: datetime
    at: datetime


class Breakers:
    """The breakers of all vendors, as one process sees them: the gate before each call, and what opens it."""

    def __init__(self, database: Database, breakers: BreakerRepository, audit: AuditRepository, pace: Pace) -> None:
        self._database = database
        self._breakers = breakers
        self._audit = audit
        self._pace = pace
        self._refusals: Counter[str] = Counter()
        self._unrecorded: dict[str, _Refusal] = {}

    @contextlib.asynccontextmanager
    async def guarding(self) -> AsyncIterator[None]:
        """Hold back the block's calls to vendors whose breaker is open, and open it if a credential is refused.

        The opening is kept before the block ends. If that fails, this process holds calls back all the same, and
        keeps the opening later.
        """
        begun_at = utcnow()
        token = call_context.gate.set(self.admit)
        try:
            yield
        except VendorAuthFailed as error:
            # Before anything is awaited: from here on no call of this process is let pass.
            self._refusals[error.vendor] += 1
            self._unrecorded[error.vendor] = _Refusal(describe(error), begun_at, utcnow())
            await self._record(error.vendor)
            raise
        finally:
            call_context.gate.reset(token)

    async def admit(self, vendor: str) -> None:
        """Return if a call may be sent to a vendor.

        Raises:
            BreakerOpen: it may not.
            Unavailable: the database does not tell (`database_unavailable`): nothing goes out unguarded.
        """
        refusals = self._refusals[vendor]
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                is_open = await self._breakers.is_open(vendor)
        except (PyMongoError, TimeoutError) as error:
            message = f"{vendor} was not called: its breaker cannot be read"
            raise Unavailable(message, code="database_unavailable") from error
        # What was refused while the database was asked may be younger than its answer.
        if is_open or vendor in self._unrecorded or self._refusals[vendor] != refusals:
            raise BreakerOpen(vendor, f"{vendor} was not called: it refused our credential before")

    async def get(self, vendor: str) -> Breaker:
        """Return the breaker of a vendor, once it holds what this process has seen."""
        if vendor in self._unrecorded:
            await self._record(vendor)
        return await self._breakers.get(vendor)

    async def hurry(self, vendor: str) -> None:
        """Have an open breaker probed soon, because this process may have come with a new credential."""
        breaker = await self._breakers.get(vendor)
        hurried = breaker.hurried(utcnow())
        if hurried != breaker:
            await self._breakers.save(hurried)

    async def claim_probe(self, breaker: Breaker) -> bool:
        """Take the turn to probe; false if it is not time, or another process has it."""
        now = utcnow()
        return breaker.due(now) and await self._breakers.save(breaker.probing(now, now + CLAIM))

    async def probed(self, breaker: Breaker, outcome: ProbeOutcome) -> Breaker:
        """Keep what a probe learned, and return the breaker as it now is."""

        async def body(session: Session) -> Breaker:
            current = await self._breakers.get(breaker.vendor, session)
            if not current.open or current.opened_at != breaker.opened_at:
                return current
            now = utcnow()
            probed = current.probed(outcome, now, self._pace)
            await self._breakers.save(probed, session)
            if not probed.open:
                await self._audit.write(_event(probed, "vendor.breaker_closed", Outcome.SUCCESS, now), session)
            return probed

        after = await self._database.run_transaction(body)
        if not after.open:
            log.info("vendor_breaker_closed", vendor=breaker.vendor)
        return after

    async def _record(self, vendor: str) -> None:
        """Open the breaker for a refusal; one that cannot be kept now is kept later."""
        refusal = self._unrecorded[vendor]
        try:
            opened = await self._open(vendor, refusal)
        except (PyMongoError, Unavailable) as error:
            log.warning("vendor_breaker_not_recorded", vendor=vendor, error=type(error).__name__)
            return
        if self._unrecorded.get(vendor) is refusal:
            del self._unrecorded[vendor]
        if opened is not None:
            log.error("vendor_breaker_opened", vendor=vendor, streak=opened.streak, message=refusal.failure.message)

    async def _open(self, vendor: str, refusal: _Refusal) -> Breaker | None:
        """Open a breaker; None if that is not news."""

        async def body(session: Session) -> Breaker | None:
            breaker = await self._breakers.get(vendor, session)
            if breaker.knows_better(refusal.begun_at):
                return None
            opened = breaker.opened(refusal.failure, refusal.at, self._pace)
            await self._breakers.save(opened, session)
            await self._audit.write(_event(opened, "vendor.breaker_opened", Outcome.FAILURE, refusal.at), session)
            return opened

        return await self._database.run_transaction(body)


class Prober:
    """Probes the vendors whose breaker is open, and has what was parked for a closed one tried again.

    Every worker runs one; of those that find a probe due one makes it. What is to be tried again is looked for every
    time, not only when a breaker closes: so a worker that dies after closing one loses nothing.
    """

    def __init__(
        self,
        breakers: Breakers,
        operations: OperationRepository,
        decisions: Decisions,
        probes: Mapping[str, Probe],
        metrics: Metrics,
        pace: Pace,
    ) -> None:
        self._breakers = breakers
        self._operations = operations
        self._decisions = decisions
        self._probes = probes
        self._metrics = metrics
        self._pace = pace

    async def run(self) -> None:
        """Look after every vendor until cancelled; an error is logged and the next round tries again."""
        await asyncio.gather(*map(self._look_after, self._probes))

    async def look(self, vendor: str) -> None:
        """Do for a vendor whatever is due."""
        breaker = await self._breakers.get(vendor)
        if await self._breakers.claim_probe(breaker):
            breaker = await self._breakers.probed(breaker, await self._probe(vendor))
        self._metrics.tell_breaker(vendor, is_open=breaker.open)
        codes = breaker.retried_codes(utcnow())
        if codes:
            await self._retry_parked(vendor, codes)

    async def _look_after(self, vendor: str) -> None:
        # Each vendor has a task, and so a context, of its own. Its gate is not set: a probe is what may pass.
        call_context.correlation_id.set(f"probe/{vendor}")
        started = False
        while True:
            try:
                if not started:
                    await self._breakers.hurry(vendor)
                    started = True
                await self.look(vendor)
            except Exception as error:  # noqa: BLE001 - whatever is away now may be back in the next round
                log.warning("breaker_not_looked_after", vendor=vendor, error=f"{type(error).__name__}: {error}"[:300])
            await asyncio.sleep(self._pace.look_every.total_seconds())

    async def _probe(self, vendor: str) -> ProbeOutcome:
        try:
            await self._probes[vendor]()
        except VendorError as error:
            log.warning("vendor_probe_failed", vendor=vendor, code=error.code)
            if error.code == FORBIDDEN:
                return ProbeOutcome.TAKEN
            weather = isinstance(error, VendorUnavailable | OutcomeUnknown)
            return ProbeOutcome.NOT_TOLD if weather else ProbeOutcome.REFUSED
        return ProbeOutcome.TAKEN

    async def _retry_parked(self, vendor: str, codes: frozenset[str]) -> None:
        after: str | None = None
        while batch := await self._operations.needing_operator(after, BATCH):
            for operation in batch:
                if operation.parked_for(vendor, codes):
                    await self._decisions.retry_parked(operation.id, vendor, codes, ACTOR)
            after = batch[-1].id


def _event(breaker: Breaker, action: str, outcome: Outcome, at: datetime) -> AuditEvent:
    return AuditEvent(
        id=new_id(),
        at=at,
        actor=Actor(type=ActorType.SYSTEM, id=ACTOR),
        action=action,
        outcome=outcome,
        resource=Resource(type="vendor", id=breaker.vendor),
        source="platform",
        metadata={"streak": breaker.streak},
    )
