"""Feature flags decide the same for ever: golden vectors, and the rules between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.flags import Flag, FlagScope, FlagState, FlagSubject, bucket, evaluate
from domain.seeds import FLAGS

ACME = FlagSubject(
    tenant_id="01K0ACME0000000000000000AA",
    tenant_slug="acme",
    plan="business",
    partner_slug="nordicmsp",
    environment="production",
)


def flag(state: FlagState, pct: int = 0, **scope: list[str]) -> Flag:
    return Flag(key="new_billing_engine", description="", state=state, pct=pct, scope=FlagScope(**scope))


@pytest.mark.parametrize(
    ("key", "tenant_id", "expected"),
    [
        ("new_billing_engine", "01K0ACME0000000000000000AA", 61),
        ("jmap_native_v2", "01K0ACME0000000000000000AA", 66),
        ("new_billing_engine", "01K0ACME0000000000000000AB", 88),
    ],
)
def test_bucket_golden_vectors(key: str, tenant_id: str, expected: int) -> None:
    """A tenant's bucket never changes: sha256 of "<tenantId>:<key>" mod 100, computed apart from this code."""
    assert bucket(key, tenant_id) == expected


@pytest.mark.parametrize(
    ("tested", "expected", "reason"),
    [
        (flag(FlagState.OFF, pct=100, plans=["business"]), False, "off is off, whatever else is set"),
        (flag(FlagState.ON, plans=["starter"]), True, "on is on, whatever the scope says"),
        (flag(FlagState.TARGETED), False, "an empty allow-list means nobody"),
        (flag(FlagState.TARGETED, plans=["business"]), True, "the one given axis matches"),
        (flag(FlagState.TARGETED, plans=["business"], tenant_slugs=["other"]), False, "every given axis must match"),
        (flag(FlagState.TARGETED, partner_slugs=["nordicmsp"], environments=["production"]), True, "both axes match"),
        (flag(FlagState.ROLLOUT, pct=0), False, "nobody at nought"),
        (flag(FlagState.ROLLOUT, pct=100), True, "everybody at a hundred"),
        (flag(FlagState.ROLLOUT, pct=100, plans=["starter"]), False, "out of scope whatever the share"),
        (flag(FlagState.ROLLOUT, pct=61), False, "bucket 61 is not below 61"),
        (flag(FlagState.ROLLOUT, pct=62), True, "bucket 61 is below 62"),
    ],
)
def test_evaluation(tested: Flag, expected: bool, reason: str) -> None:
    """Each state decides by its own rule."""
    assert evaluate(tested, ACME) is expected, reason


@given(st.text(min_size=1), st.integers(0, 99))
def test_raising_the_share_only_adds_tenants(tenant_id: str, pct: int) -> None:
    """Whoever is in at some share is in at every larger one."""
    subject = ACME.model_copy(update={"tenant_id": tenant_id})
    if evaluate(flag(FlagState.ROLLOUT, pct=pct), subject):
        assert evaluate(flag(FlagState.ROLLOUT, pct=pct + 1), subject)


def test_ten_flags_are_seeded_and_all_off() -> None:
    """A new installation starts dark."""
    assert len({each.key for each in FLAGS}) == 10
    assert {each.state for each in FLAGS} == {FlagState.OFF}
