"""Stalwart: mail domains, their DNS records and keys, roles and mailboxes."""

from integrations.stalwart.client import StalwartClient
from integrations.stalwart.models import (
    DkimKey,
    DnsRecord,
    Domain,
    Link,
    Mailbox,
    MailboxSpec,
    Role,
    RoleSpec,
    ServerInfo,
)

__all__ = [
    "DkimKey",
    "DnsRecord",
    "Domain",
    "Link",
    "Mailbox",
    "MailboxSpec",
    "Role",
    "RoleSpec",
    "ServerInfo",
    "StalwartClient",
]
