"""DKIM signatures, and the background task that makes the keys of a new domain."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from sandbox.stalwart.errors import SetError, invalid
from sandbox.stalwart.fields import MASK, NAME, READ_ONLY, TEXT, Field, Fields
from sandbox.stalwart.registry import Registry
from sandbox.state import Document, State

_RSA_BITS = 2048
_ALGORITHMS = ("Dkim1Ed25519Sha256", "Dkim1RsaSha256", "Dkim2Ed25519Sha256", "Dkim2RsaSha256")

PublicKey = ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class DkimSignatures(Registry):
    """Keys that sign outgoing mail. Not unique: the same selector twice is accepted."""

    kind: ClassVar[str] = "x:DkimSignature"
    table: ClassVar[str] = "dkimSignatures"
    filters: ClassVar[frozenset[str]] = frozenset({"domainId", "memberTenantId"})
    fields: ClassVar[Fields] = {
        "@type": NAME,
        "auid": TEXT,
        "canonicalization": Field(str, default="relaxed/relaxed"),
        "createdAt": READ_ONLY,
        "domainId": NAME,
        "expire": Field(int, nullable=True),
        "headers": Field(
            dict, default=dict.fromkeys(("Date", "From", "Message-ID", "Subject", "To"), True), is_set=True
        ),
        "memberTenantId": TEXT,
        "nextTransitionAt": TEXT,
        "privateKey": Field(dict, required=True, variants=("Text",)),
        "publicKey": READ_ONLY,
        "report": Field(bool, default=True),
        "selector": NAME,
        "stage": Field(str, default="active"),
        "thirdParty": TEXT,
        "thirdPartyHash": TEXT,
    }

    def __init__(self, state: State, account_id: str, delay_seconds: float) -> None:
        super().__init__(state, account_id)
        self._domains = state.table("domains")
        self._tasks = state.table("dkim_tasks")
        self._delay_seconds = delay_seconds

    def schedule(self, domain: Document) -> None:
        """Have the missing keys of a domain made; the due time is stored, so a restart does not lose the task."""
        management = domain["dkimManagement"]
        if management["@type"] != "Automatic" or domain["id"] in self._tasks or not self._missing(domain):
            return
        self._tasks.put(domain["id"], {"domainId": domain["id"], "dueAt": time.time() + self._delay_seconds})

    def unschedule(self, domain_id: str) -> None:
        """Drop the task of a domain that is gone."""
        self._tasks.delete(domain_id)

    def settle(self) -> None:
        """Make the keys that are due; to be called before each request, so nobody can tell that it happens late."""
        for task in self._tasks:
            domain = self._domains.get(task["domainId"])
            if task["dueAt"] > time.time():
                continue
            for algorithm in self._missing(domain) if domain else ():
                self._insert(self._generated(task["domainId"], algorithm))
            self._tasks.delete(task["domainId"])

    def of_domain(self, domain_id: str) -> list[Document]:
        """Return the signatures of a domain, oldest first."""
        return [signature for signature in self._objects if signature["domainId"] == domain_id]

    def prepare(self, document: Document, stored: Document | None) -> Document:
        """Check the parent and derive the public key; the private one is not kept, nothing here signs."""
        if document["@type"] not in _ALGORITHMS:
            raise invalid("@type", f"@type must be one of {', '.join(_ALGORITHMS)}.")
        if document["domainId"] not in self._domains:
            parent = {"object": "x:Domain", "id": document["domainId"]}
            raise SetError("invalidForeignKey", properties=["domainId"], objectId=parent)
        secret = document["privateKey"].get("secret")
        if secret != MASK or stored is None:
            document["publicKey"] = _public_key_of(secret, document["@type"])
        document["privateKey"] = {"@type": "Text", "secret": MASK}
        return document

    def matches(self, document: Document, name: str, value: Any) -> bool:
        """Return whether a property equals the value."""
        return bool(document[name] == value)

    def _missing(self, domain: Document) -> list[str]:
        present = {signature["@type"] for signature in self.of_domain(domain["id"])}
        wanted = domain["dkimManagement"].get("algorithms", {})
        return [algorithm for algorithm in _ALGORITHMS if algorithm in wanted and algorithm not in present]

    def _generated(self, domain_id: str, algorithm: str) -> Document:
        short = "ed25519" if _is_ed25519(algorithm) else "rsa"
        key: PublicKey
        if _is_ed25519(algorithm):
            key = ed25519.Ed25519PrivateKey.generate().public_key()
        else:
            key = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS).public_key()
        defaults = {name: field.default for name, field in self.fields.items()}
        return {
            **defaults,
            "@type": algorithm,
            "domainId": domain_id,
            "selector": f"v{algorithm[len('Dkim')]}-{short}-{datetime.now(UTC):%Y%m%d}",
            "publicKey": _encoded(key),
            "privateKey": {"@type": "Text", "secret": MASK},
        }


def _is_ed25519(algorithm: str) -> bool:
    return "Ed25519" in algorithm


def _public_key_of(pem: Any, algorithm: str) -> str:
    try:
        key = load_pem_private_key(str(pem).encode(), password=None).public_key()
    except (ValueError, TypeError) as error:
        raise invalid("privateKey", "Failed to parse the private key.") from error
    expected = ed25519.Ed25519PublicKey if _is_ed25519(algorithm) else rsa.RSAPublicKey
    if not isinstance(key, expected):
        raise invalid("privateKey", "The private key does not fit the algorithm.")
    return _encoded(key)


def _encoded(key: PublicKey) -> str:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
    return base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
