"""The rules of breakers: when one is probed, what counts as news, and what is tried again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from domain.breakers import PACES, PROBED_BY_A_START_AFTER, REOPENED_WITHIN, Breaker, BreakerState, Pace, ProbeOutcome
from domain.operations import Failure
from domain.provisioning import RetryProfile

NOW = datetime(2026, 11, 20, tzinfo=UTC)
PACE = PACES[RetryProfile.PRODUCTION]
REFUSAL = Failure(code="vendor_auth_failed", message="ocis answered 401")
BOTH = {"vendor_auth_failed", "vendor_breaker_open"}
MOMENT = timedelta(milliseconds=1)


def opened(vendor: str = "ocis", at: datetime = NOW) -> Breaker:
    return Breaker(vendor=vendor).opened(REFUSAL, at, PACE)


def reopened(times: int, *, pause: timedelta = timedelta(minutes=1)) -> tuple[Breaker, datetime]:
    """Return a breaker that closed and opened again so many times, and when it did so last."""
    breaker, now = opened(), NOW
    for _ in range(times):
        closed = breaker.probed(ProbeOutcome.TAKEN, now, PACE)
        now += pause
        breaker = closed.opened(REFUSAL, now, PACE)
    return breaker, now


def pauses(vendor: str, probes: int) -> list[float]:
    """Return how long is waited before each of so many refused probes, in seconds."""
    breaker, now, found = opened(vendor), NOW, []
    for _ in range(probes):
        assert breaker.next_probe_at is not None
        assert not breaker.due(breaker.next_probe_at - MOMENT)
        assert breaker.due(breaker.next_probe_at)
        found.append((breaker.next_probe_at - now).total_seconds())
        now = breaker.next_probe_at
        breaker = breaker.probing(now, now + timedelta(seconds=30)).probed(ProbeOutcome.REFUSED, now, PACE)
    return found


def test_pauses_double() -> None:
    """A refused credential is tried after 5 s, then ever more seldom, at last every 5 minutes."""
    assert pauses("ocis", 9) == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert PACE.pause("ocis", 100_000) == timedelta(minutes=5)


@pytest.mark.parametrize("profile", RetryProfile)
def test_every_profile_backs_off(profile: RetryProfile) -> None:
    """Whatever the profile, pauses grow from the first to the longest."""
    pace: Pace = PACES[profile]
    assert pace.pause("ocis", 0) == pace.first < pace.pause("ocis", 1) < pace.pause("ocis", 50) == pace.longest


def test_stalwart_is_not_tried_often_enough_to_ban_us() -> None:
    """It bans an address after 100 refused logins a day: a whole day of probes stays well below."""
    waited = pauses("stalwart", 100)
    within_a_day = next(count for count in range(100) if sum(waited[: count + 1]) > 24 * 3600)
    assert 60 < within_a_day < 85


def test_weather_does_not_count_as_refusal() -> None:
    """A probe without an answer is made again after the first pause, and later pauses do not grow by it."""
    breaker = opened().probed(ProbeOutcome.REFUSED, NOW, PACE)
    away = breaker.probed(ProbeOutcome.NOT_TOLD, NOW, PACE)
    assert (away.open, away.next_probe_at) == (True, NOW + PACE.first)
    again = away.probed(ProbeOutcome.REFUSED, NOW, PACE)
    assert again.next_probe_at == NOW + PACE.first * 4


def test_closed_by_a_probe_that_passes() -> None:
    """A closed breaker is not probed, and tells when it closed and what had opened it."""
    closed = opened().probed(ProbeOutcome.TAKEN, NOW + MOMENT, PACE)
    assert (closed.state, closed.closed_at, closed.failure) == (BreakerState.CLOSED, NOW + MOMENT, REFUSAL)
    assert not closed.due(NOW + timedelta(days=1))


def test_what_is_no_news() -> None:
    """A refusal of a call that began before the breaker closed, or that comes while it is open, opens nothing."""
    breaker = opened()
    assert not Breaker(vendor="ocis").knows_better(NOW)
    assert breaker.knows_better(NOW + timedelta(hours=1))
    closed = breaker.probed(ProbeOutcome.TAKEN, NOW, PACE)
    assert closed.knows_better(NOW)
    assert not closed.knows_better(NOW + MOMENT)


def test_opening_again_and_again_is_probed_more_seldom() -> None:
    """What the probe does not see must not become a hot loop; after a quiet time it starts afresh."""
    for times in range(8):
        breaker, now = reopened(times)
        assert breaker.streak == times
        assert breaker.next_probe_at == now + PACE.pause("ocis", times)
    breaker, now = reopened(3, pause=REOPENED_WITHIN)
    assert (breaker.streak, breaker.next_probe_at) == (0, now + PACE.first)


def test_what_is_tried_again() -> None:
    """All that the breaker held back; but what keeps opening it waits until it has stayed closed for a while."""
    assert Breaker(vendor="ocis").retried_codes(NOW) == BOTH
    assert opened().retried_codes(NOW) == set()
    for times, expected in ((0, BOTH), (2, BOTH), (3, {"vendor_breaker_open"}), (9, {"vendor_breaker_open"})):
        breaker, now = reopened(times)
        closed = breaker.probed(ProbeOutcome.TAKEN, now, PACE)
        assert closed.retried_codes(now) == expected
        assert closed.retried_codes(now + REOPENED_WITHIN) == BOTH


def test_a_process_that_starts_has_it_probed_soon() -> None:
    """It may have a new credential; but one that is restarted in a loop makes no more than a probe a minute."""
    now = NOW + timedelta(minutes=2)
    breaker = opened().probing(NOW, NOW).model_copy(update={"next_probe_at": NOW + timedelta(minutes=5)})
    assert breaker.hurried(now).next_probe_at == now
    assert breaker.hurried(NOW + MOMENT).next_probe_at == NOW + PROBED_BY_A_START_AFTER
    soon = opened()
    assert soon.hurried(NOW) == soon
    closed = breaker.probed(ProbeOutcome.TAKEN, now, PACE)
    assert closed.hurried(now) == closed
