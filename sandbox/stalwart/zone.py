"""The DNS records that a domain's owner has to publish, as BIND zone text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sandbox.state import Document

# A character string in a TXT record holds at most 255 octets.
_CHUNK = 255
_SERVICES = (("jmap", 443), ("caldavs", 443), ("carddavs", 443), ("imaps", 993), ("pop3s", 995), ("submissions", 465))
_ALIASES = ("autoconfig", "autodiscover", "mta-sts")


def zone_file(domain: str, mail_host: str, signatures: Iterable[Document]) -> str:
    """Return one `name IN TYPE value` per line."""
    return "".join(f"{line}\n" for line in _records(domain, mail_host, signatures))


def _records(domain: str, mail_host: str, signatures: Iterable[Document]) -> Iterator[str]:
    yield f"{domain}. IN MX 10 {mail_host}."
    yield f"{domain}. IN TXT {_quoted('v=spf1 mx -all')}"
    yield f"{mail_host}. IN TXT {_quoted('v=spf1 a -all')}"
    for signature in signatures:
        key_type = "ed25519" if "Ed25519" in signature["@type"] else "rsa"
        value = f"v=DKIM1; k={key_type}; h=sha256; p={signature['publicKey']}"
        yield f"{signature['selector']}._domainkey.{domain}. IN TXT {_quoted(value)}"
    yield f"_dmarc.{domain}. IN TXT {_quoted(f'v=DMARC1; p=reject; rua=mailto:postmaster@{domain}')}"
    yield f"_mta-sts.{domain}. IN TXT {_quoted('v=STSv1; id=1')}"
    yield f"_smtp._tls.{domain}. IN TXT {_quoted(f'v=TLSRPTv1; rua=mailto:postmaster@{domain}')}"
    for service, port in _SERVICES:
        yield f"_{service}._tcp.{domain}. IN SRV 0 1 {port} {mail_host}."
    for alias in _ALIASES:
        yield f"{alias}.{domain}. IN CNAME {mail_host}."


def _quoted(value: str) -> str:
    chunks = [f'"{value[start : start + _CHUNK]}"' for start in range(0, len(value), _CHUNK)]
    return chunks[0] if len(chunks) == 1 else f"({' '.join(chunks)})"
