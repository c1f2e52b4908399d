"""Act 4: an order is canceled, and what it made is undone."""

from __future__ import annotations

from temporalio.client import WorkflowExecutionStatus

from cli.demo.claims import Claim, all_at_once, traces
from cli.demo.stage import Json, Stage, new_slug, order, waits_in

TITLE = "A canceled order leaves nothing behind"
STEP = "ocis.member"


async def play(stage: Stage) -> list[Claim]:
    """Order a tenant that cannot be finished, cancel it, and order it anew under another slug."""
    slug = new_slug()
    stage.say("OCIS refuses the last thing that this tenant needs; everything else is made.")
    refusal = {"method": "POST", "status": 400}
    async with stage.fault("ocis", "status", [f"tenant/{slug}/", f"/{STEP}."], **refusal):
        operation = await stage.watch(await stage.order(slug), until=waits_in("ocis"), about="ocis")
        status = (await stage.tenant(slug))["provisioningStatus"]
        before = await traces(stage, operation)
        stage.say("The order was a mistake. An operator cancels it:")
        answer = await stage.decide(operation, "cancel", "ordered by mistake")
        operation = await stage.watch(operation, about="_undo")
    everywhere = all(before[vendor] for vendor, each in status.items() if each != "disabled")
    return [
        Claim("before, each system had something of it", everywhere, _told(before)),
        Claim("the operator's cancel is taken", answer.status_code == 202, str(answer.status_code)),
        *await _undone(stage, operation, before),
        *await _names(stage, slug),
    ]


async def _undone(stage: Stage, operation: Json, before: dict[str, list[str]]) -> list[Claim]:
    tenant = await stage.tenant(operation["tenantSlug"])
    states = [step["state"] for step in operation["steps"] if "_undo" in step["name"]]
    made = [step for step in operation["steps"] if step["state"] == "compensated"]
    all_done = bool(made) and len(states) == len(made) and set(states) == {"done"}
    after = await traces(stage, operation)
    nothing = [
        Claim(
            f"{vendor}: nothing is left of {len(before[vendor])} objects",
            not left,
            ", ".join(left) or "nothing",
        )
        for vendor, left in after.items()
    ]
    description = await (await stage.execution(operation)).describe()
    status = description.status.name if description.status is not None else "unknown"
    return [
        Claim("the operation is canceled", operation["state"] == "canceled", operation["state"]),
        Claim("each step that made something was undone", all_done, f"{states.count('done')} of {len(made)}"),
        *nothing,
        Claim("the tenant is abandoned", tenant["status"] == "abandoned", tenant["status"]),
        Claim("its lock is free", tenant["operation"] is None, "no operation" if not tenant["operation"] else "held"),
        Claim("the run went to its end", status == WorkflowExecutionStatus.COMPLETED.name, f"Temporal says {status}"),
    ]


async def _names(stage: Stage, slug: str) -> list[Claim]:
    """Order the tenant again, and then another one with its domain and its admin."""
    stage.say("The customer orders again, under the same slug and then under another one with the same domain.")
    again = await stage.partner.post("/tenants", json=order(slug))
    refusal = again.json().get("code", "taken") if again.status_code != 202 else "taken"
    heir = new_slug()
    body = order(heir, f"{slug}.example")
    ordered = await stage.partner.post("/tenants", json=body, headers={"Prefer": "wait=30"})
    outcome = ordered.json().get("state") or ordered.json().get("code")
    claims = [
        Claim("its slug is never given away again", refusal == "slug_taken", f"{again.status_code} {refusal}"),
        Claim("its domain is free for another tenant", outcome == "completed", f"{ordered.status_code} {outcome}"),
    ]
    return [*claims, await all_at_once(stage, heir)] if outcome == "completed" else claims


def _told(traces: dict[str, list[str]]) -> str:
    return ", ".join(f"{vendor} {len(rows)}" for vendor, rows in traces.items())
