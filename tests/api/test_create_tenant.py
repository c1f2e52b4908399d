"""Creating a tenant: what is recorded, what is refused, and what happens when two ask at once."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus

from domain.audit import Actor, ActorType, Outcome
from domain.ids import tenant_lock
from domain.operations import OperationState
from domain.tenants import MAX_DOMAINS, MAX_SEATS, DomainState, TenantStatus
from runtime.clock import utcnow
from runtime.wiring import Store
from tests.api.client import MAX_BODY_BYTES, Api, assert_problem, create, new_tenant, nothing_changes, wrong_fields
from tests.api.conftest import CallFrom
from tests.store.builders import build_domain, build_tenant, keep

JSON = {"Content-Type": "application/json"}


async def test_everything_is_recorded_together(call_from: CallFrom, store: Store, temporal: Client) -> None:
    """An accepted request leaves tenant, admin, subscription, operation, one event and a running workflow."""
    response = await call_from("10.0.0.1").post(
        "/tenants",
        json=new_tenant(domains=["Acme.Example.ORG."], adminEmail="Ada@Acme.Example.org"),
        headers={"X-Forwarded-For": "203.0.113.9", "X-Request-Id": "req-1"},
    )
    operation = response.json()
    assert response.status_code == 202
    assert response.headers["Location"] == f"/operations/{operation['id']}"
    assert response.headers["Retry-After"] == "1"
    assert (operation["kind"], operation["state"], operation["tenantSlug"]) == ("tenant.provision", "running", "acme")

    tenant = await store.tenants.get("acme")
    assert tenant is not None
    assert (tenant.status, tenant.partner_slug, tenant.seats) == (TenantStatus.PENDING, "nordic", 5)
    assert [(each.name, each.state) for each in tenant.domains] == [("acme.example.org", DomainState.VERIFIED)]
    admin = await store.users.by_email("ada@acme.example.org")
    assert admin is not None
    assert admin.id == tenant.admin_user_id
    assert admin.role_in(tenant.id) == "admin"
    subscription = await store.subscriptions.of_tenant(tenant.id)
    assert subscription is not None
    assert (subscription.per_seat_amount, subscription.seats, subscription.price_id) == (1300, 5, "business-monthly")

    kept = await store.operations.get(operation["id"])
    assert kept is not None
    assert kept.open
    assert kept.started_at is not None
    described = await temporal.get_workflow_handle(kept.workflow_id).describe()
    assert described.status is WorkflowExecutionStatus.RUNNING

    (event,) = await store.audit.find({})
    assert (event.action, event.outcome, event.request_id) == ("tenant.created", Outcome.SUCCESS, "req-1")
    assert event.actor == Actor(type=ActorType.PARTNER, id="nordic")
    assert (event.tenant_slug, event.partner_slug, event.operation_id) == ("acme", "nordic", kept.id)
    personal = {each.subject: await store.audit.open_personal(each) for each in event.personal}
    assert personal == {admin.id: {"email": "ada@acme.example.org"}, "nordic": {"address": "203.0.113.9"}}


async def test_a_known_person_becomes_admin_without_a_double(api: Api, store: Store) -> None:
    """An address that we know is the same person, who gains a membership."""
    await create(api, adminEmail="MEMBER@people.example.org")
    tenant, member = await store.tenants.get("acme"), await store.users.get("member")
    assert tenant is not None
    assert member is not None
    assert tenant.admin_user_id == "member"
    assert len(member.memberships) == 2


async def test_the_invoice_goes_to_the_admin_unless_said_otherwise(api: Api, store: Store) -> None:
    """`billingInfo.email` defaults to `adminEmail`."""
    await create(api, billingInfo={"companyName": "Acme", "country": "DK"})
    tenant = await store.tenants.get("acme")
    assert tenant is not None
    assert tenant.billing_info is not None
    assert tenant.billing_info.email == "admin@acme.example.org"


@pytest.mark.parametrize(
    ("changes", "loc"),
    [
        ({"slug": "Acme"}, ["slug"]),
        ({"slug": "ac"}, ["slug"]),
        ({"slug": "a" * 41}, ["slug"]),
        ({"slug": "acme-"}, ["slug"]),
        ({"slug": "acme\n"}, ["slug"]),
        ({"slug": None}, ["slug"]),
        ({"name": "  "}, ["name"]),
        ({"name": "x" * 201}, ["name"]),
        ({"name": "a\x00b"}, ["name"]),
        ({"name": "a\nb"}, ["name"]),
        ({"name": "\u200b\ufeff"}, ["name"]),
        ({"name": "Acme \u202egro.live"}, ["name"]),
        ({"plan": "gold"}, ["plan"]),
        ({"plan": "starter", "seats": 26}, ["seats"]),
        ({"cycle": "weekly"}, ["cycle"]),
        ({"currency": "SEK"}, ["currency"]),
        ({"seats": 0}, ["seats"]),
        ({"seats": MAX_SEATS + 1}, ["seats"]),
        ({"seats": "5"}, ["seats"]),
        ({"seats": True}, ["seats"]),
        ({"seats": 1.5}, ["seats"]),
        ({"domains": ["localhost"]}, ["domains", "0"]),
        ({"domains": ["ok.example.org", "127.0.0.1"]}, ["domains", "1"]),
        ({"domains": ["a\n.example.org"]}, ["domains", "0"]),
        ({"domains": ["same.example.org", "SAME.example.org."]}, ["domains"]),
        ({"domains": [f"d{number}.example.org" for number in range(MAX_DOMAINS + 1)]}, ["domains"]),
        ({"adminEmail": "nobody"}, ["adminEmail"]),
        ({"adminEmail": "a@localhost"}, ["adminEmail"]),
        ({"billingInfo": {"companyName": "Acme", "country": "Denmark"}}, ["billingInfo", "country"]),
        ({"billingInfo": {"companyName": "Acme", "country": "DK", "email": "x"}}, ["billingInfo", "email"]),
        ({"partnerId": "partner-rival"}, ["partnerId"]),
        ({"x" * 200: 1}, ["x" * 100]),
        ({"name": "\ud800"}, ["name"]),
        ({"\ud800": 1}, []),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
async def test_bad_fields_are_named(api: Api, store: Store, changes: dict[str, Any], loc: list[str]) -> None:
    """A body that is understood and wrong is 422, says where, and changes nothing."""
    async with nothing_changes(store):
        response = await api.post("/tenants", content=json.dumps({**new_tenant(), **changes}), headers=JSON)
    assert wrong_fields(assert_problem(response, 422, "invalid")) == [loc]


async def test_a_flood_of_wrong_fields_gets_a_short_answer(api: Api) -> None:
    """The answer stays small however much is wrong."""
    body = {f"field{number}": 1 for number in range(1000)}
    response = await api.post("/tenants", json=body)
    assert len(assert_problem(response, 422, "invalid")["errors"]) == 50


async def test_an_inactive_price_is_not_sold(api: Api, store: Store) -> None:
    """What the catalog no longer offers is refused at its field."""
    await store.database.collection("prices").update_one({"_id": "business-monthly"}, {"$set": {"active": False}})
    response = await api.post("/tenants", json=new_tenant())
    await store.database.collection("prices").delete_many({})
    assert wrong_fields(assert_problem(response, 422, "invalid")) == [["cycle"]]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "malformed"),
        (b"{", 400, "malformed"),
        (b"\xff\xfe\x00", 400, "malformed"),
        (b'{"seats": NaN}', 400, "malformed"),
        (b'{"seats": 1, "seats": 2}', 400, "malformed"),
        ("{}".encode("utf-16"), 400, "malformed"),
        (b'{"seats": -Infinity}', 400, "malformed"),
        (b'{"seats": ' + b"9" * 5000 + b"}", 400, "malformed"),
        (b'{"a":' * 2000, 400, "malformed"),
        (b"[" * 10_000, 400, "malformed"),
        (b"[]", 422, "invalid"),
        (b"null", 422, "invalid"),
        (b"{}", 422, "invalid"),
        (b'{"seats": 1e999}', 422, "invalid"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "too_large"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_bodies_that_are_no_tenant(api: Api, store: Store, content: bytes, status: int, code: str) -> None:
    """Whatever is sent as a body gets a problem document and changes nothing."""
    async with nothing_changes(store):
        assert_problem(await api.post("/tenants", content=content, headers=JSON), status, code)


async def test_a_body_that_does_not_tell_its_size_is_cut_off(api: Api, store: Store) -> None:
    """A stream is read no further than the limit."""
    sent = 0

    async def stream() -> Any:
        nonlocal sent
        while True:
            sent += 1024
            yield b" " * 1024

    async with nothing_changes(store):
        assert_problem(await api.post("/tenants", content=stream(), headers=JSON), 413, "too_large")
    assert sent <= MAX_BODY_BYTES + 2048


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
async def test_other_media_types_are_refused(api: Api, media_type: str | None) -> None:
    """A body counts only if it is declared as JSON."""
    headers = {"Content-Type": media_type} if media_type is not None else {}
    response = await api.post("/tenants", content=json.dumps(new_tenant()), headers=headers)
    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("body", ["null", "[]", "1", '"slug"'])
async def test_a_body_that_is_no_object(api: Api, body: str) -> None:
    """The answer speaks of JSON, not of our code."""
    problem = assert_problem(await api.post("/tenants", content=body, headers=JSON), 422, "invalid")
    assert problem["errors"] == [{"loc": [], "msg": "The body must be a JSON object."}]


async def test_a_part_that_is_no_object(api: Api) -> None:
    """The same inside the body."""
    problem = assert_problem(await api.post("/tenants", json=new_tenant(billingInfo=5)), 422, "invalid")
    assert problem["errors"] == [{"loc": ["billingInfo"], "msg": "This must be a JSON object."}]


async def test_an_empty_body_is_refused_where_one_is_needed(api: Api) -> None:
    """Nothing is not JSON."""
    assert_problem(await api.post("/tenants", content=b"", headers=JSON), 400, "malformed")


async def test_a_compressed_body_is_refused(api: Api) -> None:
    """Nothing is unpacked here, so nothing can be unpacked into something huge."""
    headers = {**JSON, "Content-Encoding": "gzip"}
    response = await api.post("/tenants", content=json.dumps(new_tenant()), headers=headers)
    assert_problem(response, 415, "unsupported_media_type")


async def test_a_media_type_may_have_parameters(api: Api) -> None:
    """`charset` and capital letters do not matter."""
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    response = await api.post("/tenants", content=json.dumps(new_tenant()), headers=headers)
    assert response.status_code == 202


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        ("/tenants?dryRun=true", {}, "not_supported"),
        ("/tenants?dryRun=false", {}, "not_supported"),
        ("/tenants", {"If-Plan-Match": "abc"}, "not_supported"),
        ("/tenants?dryrun=true", {}, "unknown_parameter"),
        ("/tenants", {"Idempotency-Key": ""}, "idempotency_key_malformed"),
        ("/tenants", {"Idempotency-Key": "two words"}, "idempotency_key_malformed"),
        ("/tenants", {"Idempotency-Key": "k" * 256}, "idempotency_key_malformed"),
    ],
)
@pytest.mark.parametrize("body", [new_tenant(), {}], ids=["good body", "bad body"])
async def test_requests_that_cannot_be_understood(
    api: Api, store: Store, path: str, headers: dict[str, str], code: str, body: dict[str, Any]
) -> None:
    """A 400 comes before anything is said about the fields."""
    async with nothing_changes(store):
        assert_problem(await api.post(path, json=body, headers=headers), 400, code)


async def test_refusals_come_in_their_order(api: Api) -> None:
    """401 before 403 before 400 before 422 before 409."""
    await create(api)
    bad: dict[str, Any] = {"json": {"slug": "acme"}}
    assert_problem(await api.post("/tenants?typo=1", None, **bad), 401, "unauthenticated")
    assert_problem(await api.post("/tenants?typo=1", "operator", **bad), 403, "tenants_are_created_by_partners")
    assert_problem(await api.post("/tenants?typo=1", **bad), 400, "unknown_parameter")
    assert_problem(await api.post("/tenants", **bad), 422, "invalid")
    assert_problem(await api.post("/tenants", json=new_tenant(plan="gold")), 422, "invalid")
    assert_problem(await api.post("/tenants", json=new_tenant()), 409, "slug_taken")


async def test_taken_names_are_refused(api: Api, store: Store) -> None:
    """A slug and a domain belong to one tenant, also to one that is gone."""
    await create(api, domains=["one.example.org", "two.example.org"])
    async with nothing_changes(store):
        assert_problem(await api.post("/tenants", "rival", json=new_tenant(domains=[])), 409, "slug_taken")
        response = await api.post(
            "/tenants", "rival", json=new_tenant("other", domains=["free.example.org", "TWO.example.org"])
        )
        assert assert_problem(response, 409, "domain_taken")["domain"] == "two.example.org"
    await store.database.collection("tenants").update_one({"slug": "acme"}, {"$set": {"status": "purged"}})
    assert_problem(await api.post("/tenants", json=new_tenant(domains=[])), 409, "slug_taken")


@pytest.mark.parametrize(
    ("bodies", "code"),
    [
        ([new_tenant(domains=["nordic.example.org"]), new_tenant(domains=["rival.example.org"])], "slug_taken"),
        (
            [new_tenant("first", domains=["x.example.org"]), new_tenant("second", domains=["x.example.org"])],
            "domain_taken",
        ),
    ],
    ids=["one slug", "one domain"],
)
async def test_of_two_partners_who_ask_at_once_one_wins(
    api: Api, store: Store, bodies: list[dict[str, Any]], code: str
) -> None:
    """A race for a name ends with one tenant and one refusal, never with half of both."""
    asked = [api.post("/tenants", who, json=body) for who, body in zip(("nordic", "rival"), bodies, strict=True)]
    won, lost = sorted(await asyncio.gather(*asked), key=lambda response: response.status_code)
    assert won.status_code == 202
    assert_problem(lost, 409, code)
    assert len(await store.audit.find({"action": "tenant.created"})) == 1
    for collection in ("tenants", "operations", "subscriptions"):
        assert await store.database.collection(collection).count_documents({}) == 1


async def test_ten_at_once_stay_within_three_tenants(api: Api, store: Store) -> None:
    """The limit of tenants holds under racing requests, and every refusal says so."""
    await _limit(store, "nordic", {"tenants": 3})
    responses = await asyncio.gather(*(api.post("/tenants", json=new_tenant(f"race-{number}")) for number in range(10)))
    assert sorted(response.status_code for response in responses) == [202] * 3 + [409] * 7
    assert {response.json()["code"] for response in responses if response.status_code == 409} == {"partner_limit"}
    assert len(await store.audit.find({"action": "tenant.created"})) == 3
    assert await store.database.collection("tenants").count_documents({}) == 3


async def test_seats_are_limited_and_freed(api: Api, store: Store) -> None:
    """Seats of tenants that are gone do not count."""
    await _limit(store, "nordic", {"seats": 10})
    await create(api, "first", seats=6)
    assert_problem(await api.post("/tenants", json=new_tenant("second", seats=5)), 409, "partner_limit")
    await store.database.collection("tenants").update_one({"slug": "first"}, {"$set": {"status": "deleted"}})
    await create(api, "second", seats=10)


async def _limit(store: Store, slug: str, limits: dict[str, int]) -> None:
    await store.database.collection("partners").update_one({"slug": slug}, {"$set": {"limits": limits}})


async def test_a_claim_that_lapsed_gives_its_domain_up(api: Api, store: Store) -> None:
    """An unverified claim holds a domain for 14 days; a proved one for good."""
    now = utcnow()
    stale, recent = now - timedelta(days=15), now - timedelta(days=13)
    domains = [
        build_domain("stale.example.org", claimed_at=stale),
        build_domain("recent.example.org", claimed_at=recent),
        build_domain("proved.example.org", DomainState.VERIFIED, stale),
    ]
    await keep(store, "tenants", build_tenant("squatter", domains=domains, version=4))
    for name in ("recent", "proved"):
        response = await api.post("/tenants", json=new_tenant(domains=[f"{name}.example.org", "stale.example.org"]))
        assert_problem(response, 409, "domain_taken")
    await create(api, domains=["stale.example.org"])
    squatter = await store.tenants.get("squatter")
    assert squatter is not None
    assert [each.name for each in squatter.domains] == ["recent.example.org", "proved.example.org"]
    assert squatter.version == 5, "what others see of it has changed"
    (event,) = await store.audit.find({"action": "tenant.domain_lapsed"})
    assert (event.tenant_slug, event.metadata) == ("squatter", {"domain": "stale.example.org"})


class TestIdempotencyKey:
    """A request that is repeated under its key happens once."""

    KEY = {"Idempotency-Key": "key-1"}

    async def test_racing_repeats_make_one_tenant(self, api: Api, store: Store) -> None:
        """Of two equal requests at once, one works and the other gets the same answer, marked."""
        asked = (api.post("/tenants", json=new_tenant(), headers=self.KEY) for _ in range(2))
        first, second = sorted(
            await asyncio.gather(*asked), key=lambda response: "Idempotency-Replayed" in response.headers
        )
        assert first.status_code == second.status_code == 202
        assert first.json() == second.json()
        assert "Idempotency-Replayed" not in first.headers
        assert second.headers["Idempotency-Replayed"] == "true"
        assert first.headers["Location"] == second.headers["Location"]
        for collection in ("tenants", "operations", "audit_events", "idempotency_keys"):
            assert await store.database.collection(collection).count_documents({}) == 1

    async def test_a_replay_comes_before_the_conflict(self, api: Api, store: Store) -> None:
        """Later the slug is taken, by this very request: it gets its answer, others the conflict."""
        first = await api.post("/tenants", json=new_tenant(), headers=self.KEY)
        async with nothing_changes(store):
            again = await api.post("/tenants", json=new_tenant(), headers=self.KEY)
            assert_problem(
                await api.post("/tenants", json=new_tenant(), headers={"Idempotency-Key": "key-2"}), 409, "slug_taken"
            )
        assert again.json() == first.json()
        assert again.headers["Idempotency-Replayed"] == "true"

    async def test_another_payload_is_refused(self, api: Api, store: Store) -> None:
        """A key stands for one request."""
        await api.post("/tenants", json=new_tenant(), headers=self.KEY)
        async with nothing_changes(store):
            response = await api.post("/tenants", json=new_tenant("other"), headers=self.KEY)
            assert_problem(response, 422, "idempotency_key_reused")

    async def test_keys_belong_to_their_caller(self, api: Api) -> None:
        """Two people may choose the same key."""
        await api.post("/tenants", "nordic", json=new_tenant("first"), headers=self.KEY)
        response = await api.post("/tenants", "rival", json=new_tenant("second"), headers=self.KEY)
        assert response.status_code == 202
        assert "Idempotency-Replayed" not in response.headers

    async def test_a_key_that_has_expired_works_anew(self, api: Api, store: Store) -> None:
        """After its time a key is free, also before MongoDB has removed it."""
        await api.post("/tenants", json=new_tenant("first"), headers=self.KEY)
        expired = {"$set": {"expiresAt": utcnow() - timedelta(seconds=1)}}
        await store.database.collection("idempotency_keys").update_many({}, expired)
        response = await api.post("/tenants", json=new_tenant("second"), headers=self.KEY)
        assert response.status_code == 202
        assert "Idempotency-Replayed" not in response.headers

    async def test_a_refusal_is_not_kept(self, api: Api) -> None:
        """What failed may be tried again under the same key once the cause is gone."""
        await create(api, "first", domains=["x.example.org"])
        refused = await api.post("/tenants", json=new_tenant("second", domains=["x.example.org"]), headers=self.KEY)
        assert_problem(refused, 409, "domain_taken")
        accepted = await api.post("/tenants", json=new_tenant("second", domains=[]), headers=self.KEY)
        assert accepted.status_code == 202


class TestPreferWait:
    """`Prefer: wait=N` waits for the end of the job."""

    @pytest.mark.parametrize(("asked", "applied"), [("wait=9999", "wait=30"), ("respond-async, wait=20", "wait=20")])
    async def test_a_job_that_ends_in_time(self, api: Api, store: Store, asked: str, applied: str) -> None:
        """The answer is the finished operation."""
        response, _ = await asyncio.gather(
            api.post("/tenants", json=new_tenant(), headers={"Prefer": asked}), self._complete(store)
        )
        assert response.status_code == 200, response.text
        assert response.json()["state"] == "completed"
        assert response.headers["Preference-Applied"] == applied

    async def test_a_job_that_takes_longer(self, api: Api) -> None:
        """The answer is the running operation after the time."""
        response = await api.post("/tenants", json=new_tenant(), headers={"Prefer": "wait=1"})
        assert response.status_code == 202
        assert response.headers["Preference-Applied"] == "wait=1"

    @pytest.mark.parametrize("preference", ["wait=0", "wait=-5", "wait=soon", "await=5", "return=minimal"])
    async def test_what_is_no_wait(self, api: Api, preference: str) -> None:
        """Preferences that cannot be honoured are ignored."""
        response = await api.post("/tenants", json=new_tenant(), headers={"Prefer": preference})
        assert response.status_code == 202
        assert "Preference-Applied" not in response.headers

    @staticmethod
    async def _complete(store: Store) -> None:
        while (operation := await store.operations.holder(tenant_lock("acme"))) is None:
            await asyncio.sleep(0.01)
        await store.database.run_transaction(
            lambda session: store.operations.close(operation, OperationState.COMPLETED, utcnow(), session)
        )


@pytest.mark.parametrize("name", ["شركة", "👩‍👩‍👧‍👦 Ltd", "Ærø & Sønner A/S"])  # noqa: RUF001
async def test_names_may_be_of_any_script(api: Api, name: str) -> None:
    """What a person can read is a name, joined emoji among it."""
    response = await api.post("/tenants", json={**new_tenant(), "name": name})
    assert response.status_code == 202, response.text
