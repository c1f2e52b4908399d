"""The breaker of an outside system: open from the refusal of our credential until a probe is taken."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import Field

from domain.errors import BreakerOpen, VendorAuthFailed
from domain.model import Model, Timestamp
from domain.operations import Failure
from domain.provisioning import RetryProfile

# A breaker that opens again so soon after it closed has a cause that the probe does not see.
REOPENED_WITHIN = timedelta(minutes=10)
# From then on what was refused itself no longer gets everybody else's calls held back again at once.
SUSPICIOUS_STREAK = 3
# A new process may bring a new credential, so it does not wait for the end of a long pause; but processes may also
# be restarted in a loop.
PROBED_BY_A_START_AFTER = timedelta(minutes=1)


class BreakerState(StrEnum):
    """Whether calls are held back (open) or pass (closed)."""

    OPEN = "open"
    CLOSED = "closed"


class ProbeOutcome(StrEnum):
    """What a probe learned about our credential."""

    TAKEN = "taken"
    REFUSED = "refused"
    NOT_TOLD = "notTold"


@dataclass(frozen=True)
class Pace:
    """How often a breaker is looked at and probed."""

    look_every: timedelta
    # Between probes: the first pause, which doubles while the credential is refused, and the longest.
    first: timedelta
    longest: timedelta
    # At Stalwart, which bans an address after 100 refused logins a day: not even 80 probes a day.
    longest_at_stalwart: timedelta

    def pause(self, vendor: str, doublings: int) -> timedelta:
        """Return how long to wait before the next probe."""
        longest = self.longest_at_stalwart if vendor == "stalwart" else self.longest
        # Bounded as a power: the product of a long one would be no timedelta.
        return min(self.first * 2.0 ** min(doublings, 20), longest)


PACES = {
    RetryProfile.PRODUCTION: Pace(
        look_every=timedelta(seconds=2),
        first=timedelta(seconds=5),
        longest=timedelta(minutes=5),
        longest_at_stalwart=timedelta(minutes=20),
    ),
    # For tests: the same shape, sooner.
    RetryProfile.FAST: Pace(
        look_every=timedelta(milliseconds=200),
        first=timedelta(milliseconds=500),
        longest=timedelta(seconds=5),
        longest_at_stalwart=timedelta(seconds=5),
    ),
}


class Breaker(Model):
    """Whether calls may be sent to one vendor, and when it is probed."""

    vendor: str = Field(alias="_id")
    schema_version: int = 1
    version: int = 1
    state: BreakerState = BreakerState.CLOSED
    # The refusal that opened it last.
    failure: Failure | None = None
    opened_at: Timestamp | None = None
    closed_at: Timestamp | None = None
    # How often in a row it opened again soon after it had closed.
    streak: int = 0
    # Probes that were refused since it opened.
    refusals: int = 0
    probed_at: Timestamp | None = None
    next_probe_at: Timestamp | None = None

    @property
    def open(self) -> bool:
        """Whether calls are held back."""
        return self.state is BreakerState.OPEN

    def knows_better(self, sent_after: datetime) -> bool:
        """Tell whether a refusal of a call says nothing new: it is open, or has closed since the call was begun."""
        return self.open or (self.closed_at is not None and sent_after <= self.closed_at)

    def opened(self, failure: Failure, at: datetime, pace: Pace) -> Breaker:
        """Return it as it is once a credential was refused."""
        again = self.closed_at is not None and at - self.closed_at < REOPENED_WITHIN
        streak = self.streak + 1 if again else 0
        return self.model_copy(
            update={
                "state": BreakerState.OPEN,
                "failure": failure,
                "opened_at": at,
                "streak": streak,
                "refusals": 0,
                "next_probe_at": at + pace.pause(self.vendor, streak),
            }
        )

    def due(self, now: datetime) -> bool:
        """Tell whether it is time for a probe."""
        return self.open and self.next_probe_at is not None and self.next_probe_at <= now

    def probing(self, at: datetime, until: datetime) -> Breaker:
        """Return it as it is while one process probes; if nothing is heard of it until then, another one does."""
        return self.model_copy(update={"probed_at": at, "next_probe_at": until})

    def probed(self, outcome: ProbeOutcome, at: datetime, pace: Pace) -> Breaker:
        """Return it as it is after a probe."""
        if outcome is ProbeOutcome.TAKEN:
            changes = {"state": BreakerState.CLOSED, "closed_at": at, "next_probe_at": None}
        elif outcome is ProbeOutcome.REFUSED:
            refusals = self.refusals + 1
            changes = {"refusals": refusals, "next_probe_at": at + pace.pause(self.vendor, self.streak + refusals)}
        else:
            changes = {"next_probe_at": at + pace.first}
        return self.model_copy(update=changes)

    def hurried(self, at: datetime) -> Breaker:
        """Return it as it is when a process starts: soon to be probed."""
        if not self.open or self.next_probe_at is None:
            return self
        last = self.probed_at or self.opened_at
        soon = at if last is None else max(at, last + PROBED_BY_A_START_AFTER)
        return self.model_copy(update={"next_probe_at": min(self.next_probe_at, soon)})

    def retried_codes(self, now: datetime) -> frozenset[str]:
        """Return the codes of the parked steps that are to be tried again.

        No code while it is open. A step that was refused itself, though the probe passes, would open it over and over:
        after a few times that step waits until the breaker has stayed closed for a while.
        """
        if self.open:
            return frozenset()
        settled = self.closed_at is None or now - self.closed_at >= REOPENED_WITHIN
        if settled or self.streak < SUSPICIOUS_STREAK:
            return frozenset({VendorAuthFailed.default_code, BreakerOpen.default_code})
        return frozenset({BreakerOpen.default_code})
