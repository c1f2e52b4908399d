"""The search attributes by which people find jobs. No personal data: Temporal stores them in clear."""

from __future__ import annotations

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from domain.operations import Operation

TENANT_SLUG = SearchAttributeKey.for_keyword("TenantSlug")
PARTNER_SLUG = SearchAttributeKey.for_keyword("PartnerSlug")
OPERATION_ID = SearchAttributeKey.for_keyword("OperationId")
OPERATION_KIND = SearchAttributeKey.for_keyword("OperationKind")
REQUESTED_BY = SearchAttributeKey.for_keyword("RequestedBy")
ALL = (TENANT_SLUG, PARTNER_SLUG, OPERATION_ID, OPERATION_KIND, REQUESTED_BY)


async def ensure_search_attributes(client: Client) -> None:
    """Ensure that the server knows our search attributes; repeating it changes nothing."""
    request = AddSearchAttributesRequest(
        namespace=client.namespace,
        search_attributes={key.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD for key in ALL},
    )
    try:
        await client.operator_service.add_search_attributes(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.ALREADY_EXISTS:
            raise


def search_attributes_of(operation: Operation) -> TypedSearchAttributes:
    """Return what an operation's workflow is found by."""
    values = (
        (TENANT_SLUG, operation.tenant_slug),
        (PARTNER_SLUG, operation.partner_slug),
        (OPERATION_ID, operation.id),
        (OPERATION_KIND, operation.kind.value),
        (REQUESTED_BY, operation.requested_by.id),
    )
    return TypedSearchAttributes([SearchAttributePair(key, value) for key, value in values if value is not None])
