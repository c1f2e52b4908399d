"""Act 1: a tenant is provisioned."""

from __future__ import annotations

from cli.demo.claims import Claim, active, completed, everything_once, found_in_temporal
from cli.demo.stage import Json, Stage, new_slug

TITLE = "A tenant is provisioned"


async def play(stage: Stage) -> list[Claim]:
    """Order a tenant, and look for it everywhere."""
    slug = new_slug()
    operation = await stage.order(slug)
    # Nothing is in its way here: what waits for people is a failure.
    operation = await stage.watch(operation, until=lambda now: now["state"] == "needsOperator")
    for line in _dns_lines(await stage.tenant(slug)):
        stage.say(line)
    link = (await stage.as_operator(operation))["links"]["temporalUi"]
    stage.say(f"The same job in the Temporal web UI: {link}")
    stage.say(f"Log in as the tenant's admin: dezky token member --tenant {slug}")
    return [
        completed(operation),
        await active(stage, slug),
        *await everything_once(stage, slug),
        await found_in_temporal(stage, slug),
    ]


def _dns_lines(tenant: Json) -> list[str]:
    lines = []
    for domain in tenant["domains"]:
        kinds = sorted({record["type"] for record in domain["dnsRecords"]})
        count = len(domain["dnsRecords"])
        lines.append(f"{domain['name']} is {domain['state']}; {count} DNS records to publish ({', '.join(kinds)}).")
    return lines
