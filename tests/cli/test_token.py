"""`dezky token`: whose login is asked for."""

from __future__ import annotations

import pytest

from cli.token import _find
from domain.people import User
from domain.tenants import TenantStatus
from runtime.wiring import Store
from tests.store.builders import LONG_AGO, build_tenant, keep

pytestmark = pytest.mark.asyncio


async def test_nobody_logs_in_to_an_abandoned_tenant(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Unasked it is passed over, asked for it is called what it is."""
    admin = User(id="admin", subject="sub-admin", email="admin@acme.example.org", name="Admin", created_at=LONG_AGO)
    orphan = admin.model_copy(update={"id": "orphan", "subject": None, "email": "orphan@gone.example.org"})
    await keep(store, "users", admin, orphan)
    await keep(store, "tenants", build_tenant("acme"))
    gone = build_tenant("gone", id="Z" * 26, admin_user_id="orphan", status=TenantStatus.ABANDONED)
    await keep(store, "tenants", gone)
    assert await _find(store, "member", "", None) == admin
    assert await _find(store, "member", "", "gone") is None
    assert capsys.readouterr().err == "The tenant gone was abandoned; nobody logs in to it.\n"


async def test_without_a_tenant_that_is_kept_there_is_no_member(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """An abandoned one is none."""
    await keep(store, "tenants", build_tenant("gone", status=TenantStatus.ABANDONED))
    assert await _find(store, "member", "", None) is None
    assert capsys.readouterr().err == "There is no tenant yet.\n"
