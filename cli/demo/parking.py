"""Act 3: a step that cannot go on waits for an operator, who has it tried again."""

from __future__ import annotations

import json

from cli.demo.claims import Claim, active, all_at_once, completed, events, updates
from cli.demo.stage import Json, Stage, new_slug, waits_in

TITLE = "A parked step is resolved by an operator"
STEP = "ocis.space"
WORDS = "Creating spaces is not allowed for this account."
REASON = "the account may create spaces again"


async def play(stage: Stage) -> list[Claim]:
    """Order a tenant whose space is refused, mend that, and retry."""
    slug = new_slug()
    stage.say("OCIS, which keeps the files, refuses to create this tenant's space: the account lacks the right.")
    body = json.dumps({"error": {"code": "accessDenied", "message": WORDS}})
    refusal = {"method": "POST", "status": 403, "body": body, "contentType": "application/json"}
    async with stage.fault("ocis", "status", [f"tenant/{slug}/", f"/{STEP}."], **refusal):
        operation = await stage.watch(await stage.order(slug), until=waits_in("ocis"), about="ocis")
        claims = await _while_parked(stage, operation)
    stage.say("The account gets the right, and an operator has the step tried again:")
    answer = await stage.decide(operation, "retry", REASON)
    operation = await stage.watch(operation, about="ocis")
    requested = await events(stage, operation, "operation.retry_requested")
    by = [f"{event.actor.type}: {event.reason}" for event in requested]
    heard = await updates(stage, operation)
    return [
        *claims,
        Claim("the operator's retry is taken", answer.status_code == 202, str(answer.status_code)),
        Claim("the audit log says who decided, and why", by == [f"operator: {REASON}"], "; ".join(by) or "nothing"),
        Claim("the workflow heard it once", heard == 1, f"updates in Temporal's history: {heard}"),
        completed(operation),
        await active(stage, slug),
        await all_at_once(stage, slug),
    ]


async def _while_parked(stage: Stage, operation: Json) -> list[Claim]:
    alerts = await events(stage, operation, "operation.parked")
    told = [f"{event.metadata['step']}: {event.metadata['code']}" for event in alerts]
    partner, operator = _message(operation), _message(await stage.as_operator(operation))
    refused = await stage.partner.post(f"/operations/{operation['id']}/retry")
    return [
        Claim("the operation waits for an operator", operation["state"] == "needsOperator", operation["state"]),
        Claim("people were alerted, once", told == [f"{STEP}: vendor_forbidden"], "; ".join(told) or "no event"),
        Claim("an operator reads what OCIS said", WORDS in operator, operator),
        Claim("a partner reads our words instead", bool(partner) and WORDS not in partner, partner),
        Claim("a partner cannot decide", refused.status_code == 403, f"{refused.status_code} {refused.json()['code']}"),
    ]


def _message(operation: Json) -> str:
    errors = [step["lastError"] for step in operation["steps"] if step["name"] == STEP and step["lastError"]]
    return str(errors[0]["message"]) if errors else ""
