"""Every name that two parts of the system must build the same way: locks, workflow ids, marks, external names."""

from __future__ import annotations

import re

SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SLUG_MIN, SLUG_MAX = 3, 40

OPERATORS_GROUP = "dezky-platform-admins"
PARTNER_STAFF_GROUP = "dezky-partner-staff"


def is_slug(text: str) -> bool:
    """Tell whether a text may name a tenant or a partner."""
    return SLUG_MIN <= len(text) <= SLUG_MAX and SLUG.fullmatch(text) is not None


def tenant_lock(slug: str) -> str:
    """Return the lock key of everything that changes one tenant."""
    return f"tenant/{slug}"


def workflow_id(lock_key: str, operation_id: str) -> str:
    """Return the id of the one workflow that runs an operation."""
    return f"{lock_key}/{operation_id}"


def operation_of_workflow(workflow: str) -> str:
    """Return the operation id in a workflow id made by `workflow_id`."""
    return workflow.rsplit("/", 1)[-1]


def activity_id(step: str, generation: int) -> str:
    """Return the activity id of a step's try: generation 1, and one more for every retry by a person."""
    return f"{step}.{generation}"


def step_of_activity(activity: str) -> str | None:
    """Return the step in an activity id made by `activity_id`; None for an activity that is no step."""
    step, _, generation = activity.rpartition(".")
    return step if "." in step and generation.isdigit() else None


def tenant_group(slug: str) -> str:
    """Return the name of a tenant's group in Authentik and OCIS.

    Never the bare slug: a tenant called `platform-admins` would be the operators' group.
    """
    return f"dezky-tenant-{slug}"


def drive_alias(slug: str) -> str:
    """Return the alias by which a tenant's OCIS space is found."""
    return f"project/dezky-{slug}"


def tenant_marker(slug: str) -> str:
    """Return the words in an object's description that tell which tenant it was made for."""
    return f"dezky-tenant={slug};"


def product_id(price_row: str) -> str:
    """Return the Stripe product id of a catalog row; chosen by us, so that creating it twice is refused."""
    return f"dezky_{price_row}"


def price_lookup_key(price_row: str, currency: str, revision: int) -> str:
    """Return the lookup key of the Stripe price of a catalog row; it belongs to the row, not to a tenant."""
    return f"price:{price_row}:{currency}:{revision}"


def vendor_key(lock_key: str, operation_id: str, step: str, number: int) -> str:
    """Return the idempotency key of a step's vendor write.

    `number` grows only when the vendor replays a stored error for the key although the object is absent.
    """
    return f"{lock_key}:{operation_id}:{step}:{number}"
