"""Act 2: a system is away, and comes back."""

from __future__ import annotations

from cli.demo.claims import Claim, active, all_at_once, completed, traces, updates
from cli.demo.stage import Json, Stage, new_slug
from domain.operations import system_of

TITLE = "An outage heals by itself"
AWAY = "stalwart"


async def play(stage: Stage) -> list[Claim]:
    """Order a tenant while mail is away, and let mail come back."""
    slug = new_slug()
    stage.say("Stalwart, which keeps the mail, closes every connection that is about this tenant.")
    async with stage.fault(AWAY, "refuse", [f"tenant/{slug}/"]):
        operation = await stage.watch(await stage.order(slug), until=_only_one_is_away, about=AWAY)
        claims = await _during(stage, slug, operation)
    stage.say("Stalwart is back. Nobody does anything else:")
    operation = await stage.watch(operation, about=AWAY)
    decided = await updates(stage, operation)
    return [
        *claims,
        completed(operation),
        await active(stage, slug),
        await all_at_once(stage, slug),
        Claim("nobody had to decide anything", not decided, f"updates in Temporal's history: {decided}"),
    ]


def _only_one_is_away(operation: Json) -> bool:
    away = [step for step in operation["steps"] if system_of(step["name"]) == AWAY]
    others = [step for step in operation["steps"] if system_of(step["name"]) != AWAY]
    all_done = bool(others) and all(step["state"] == "done" for step in others)
    return all_done and any(step["nextRetryAt"] and step["attempts"] > 1 for step in away)


async def _during(stage: Stage, slug: str, operation: Json) -> list[Claim]:
    tenant = await stage.tenant(slug)
    status = tenant["provisioningStatus"]
    others = {name: each for name, each in status.items() if name != AWAY}
    told = ", ".join(f"{name} {each}" for name, each in others.items())
    error = tenant["provisioningErrors"].get(AWAY, {"code": "no error", "message": ""})
    retried = [step for step in operation["steps"] if step["nextRetryAt"]]
    next_try = f"{retried[0]['name']} at {retried[0]['nextRetryAt']}" if retried else "no step"
    left = (await traces(stage, operation))[AWAY]
    return [
        Claim("while it is away, the other systems are done", set(others.values()) <= {"ok", "disabled"}, told),
        Claim("its steps say when they are tried next", bool(retried), next_try),
        Claim("the tenant says why", error["code"] == "vendor_unavailable", f"{error['code']}: {error['message']}"),
        Claim("in Stalwart there is nothing yet", not left, ", ".join(left) or "nothing"),
    ]
