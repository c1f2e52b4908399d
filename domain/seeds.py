"""What every installation starts with. Seeded only where absent: what operators edit stays."""

from __future__ import annotations

from domain.catalog import GIB, Currency, Cycle, Plan, Price
from domain.flags import Flag

PLANS = [
    Plan(key="starter", name="Starter", storage_bytes_per_seat=50 * GIB, mail_quota_bytes=10 * GIB, max_seats=25),
    Plan(key="business", name="Business", storage_bytes_per_seat=250 * GIB, mail_quota_bytes=50 * GIB),
    Plan(key="enterprise", name="Enterprise", storage_bytes_per_seat=1024 * GIB, mail_quota_bytes=100 * GIB),
]

# Minor units per seat and month; a year costs ten months.
_MONTHLY = {
    "starter": {Currency.DKK: 4900, Currency.EUR: 650, Currency.USD: 700},
    "business": {Currency.DKK: 9900, Currency.EUR: 1300, Currency.USD: 1400},
    "enterprise": {Currency.DKK: 19900, Currency.EUR: 2650, Currency.USD: 2900},
}
_MONTHS = {Cycle.MONTHLY: 1, Cycle.YEARLY: 10}

PRICES = [
    Price(
        id=f"{plan}-{cycle.value}",
        plan=plan,
        cycle=cycle,
        amounts={currency: amount * months for currency, amount in amounts.items()},
    )
    for plan, amounts in _MONTHLY.items()
    for cycle, months in _MONTHS.items()
]

FLAGS = [
    Flag(key="jmap_native_v2", description="Use Stalwart's JMAP management API for a mail cluster."),
    Flag(key="new_billing_engine", description="Bill tenants through Stripe; off keeps billing dark."),
    Flag(key="gdpr_export_v2", description="Offer the second version of the personal data export."),
    Flag(key="oci_versioning", description="Keep file versions in tenants' OCIS spaces."),
    Flag(key="dns_autopublish", description="Publish a domain's DNS records instead of showing them."),
    Flag(key="partner_self_signup", description="Let partners apply through the portal."),
    Flag(key="mailbox_bulk_import", description="Offer the import of many mailboxes at once."),
    Flag(key="payout_statement_pdf", description="Attach a PDF statement to a payout."),
    Flag(key="audit_rehydrate", description="Bring archived audit events back into the hot tier on demand."),
    Flag(key="tenant_self_service_seats", description="Let a tenant's admins change their own seat count."),
]
