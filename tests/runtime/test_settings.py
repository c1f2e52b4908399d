"""Settings: what is read, what is refused, and that a refusal tells no secret."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from domain.provisioning import RetryProfile
from runtime.settings import Settings
from sandbox.stack.stack import PAYLOAD_KEYS
from tests.support.keys import payload_keys

PRODUCTION = {
    "ENVIRONMENT": "production",
    "DOMAIN_PROOF": "dns",
    "BILLING_STRIPE_ENABLED": "true",
    "AUTHENTIK_URL": "https://auth.example.org",
    "AUTHENTIK_TOKEN": "ak-s3cret",
    "AUTHENTIK_ISSUER": "https://auth.example.org/portal/, https://auth.example.org/operator/",
    "AUTHENTIK_AUDIENCE": "dezky-portal,dezky-operator",
    "STALWART_URL": "https://mail.example.org",
    "STALWART_TOKEN": "sw-s3cret",
    "OCIS_URL": "https://files.example.org",
    "OCIS_TOKEN": "oc-s3cret",
    "STRIPE_API_KEY": "sk-s3cret",
    "PAYLOAD_KEYS": payload_keys("2026-11", "2026-05"),
    "MONGO_URL": "mongodb://dezky:db-s3cret@mongo.example.org",
    "TRUSTED_PROXIES": "10.0.0.0/8, ::1",
}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Read settings from an environment fit for production, with changes; None leaves one out."""

    def read_with(**changes: str | None) -> Settings:
        for name, value in {**PRODUCTION, **changes}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return Settings()

    return read_with


def test_a_good_environment_is_read(read: Any) -> None:
    """Lists are split, secrets are kept, issuers pair up with audiences by position."""
    settings = read()
    assert settings.authentik.trusted == [
        ("https://auth.example.org/portal/", "dezky-portal"),
        ("https://auth.example.org/operator/", "dezky-operator"),
    ]
    assert settings.trusted_proxies == ["10.0.0.0/8", "::1"]
    assert settings.stalwart.token.get_secret_value() == "sw-s3cret"
    assert settings.operation_profile is RetryProfile.PRODUCTION
    assert settings.key_ring is not None
    assert settings.key_ring.current == "2026-11"


REFUSED = [
    ({"AUTHENTIK_TOKEN": "dev-token"}, "AUTHENTIK_TOKEN is a development secret"),
    ({"STALWART_TOKEN": "dev-token"}, "STALWART_TOKEN is a development secret"),
    ({"OCIS_TOKEN": "dev-token"}, "OCIS_TOKEN is a development secret"),
    ({"STRIPE_API_KEY": "dev-token"}, "STRIPE_API_KEY is a development secret"),
    ({"STRIPE_API_KEY": None}, "BILLING_STRIPE_ENABLED needs STRIPE_API_KEY"),
    ({"DOMAIN_PROOF": "assume"}, "DOMAIN_PROOF=assume is for development"),
    ({"OPERATION_PROFILE": "fast"}, "OPERATION_PROFILE must be production"),
    ({"PAYLOAD_KEYS": None}, "PAYLOAD_KEYS is needed"),
    ({"PAYLOAD_KEYS": PAYLOAD_KEYS}, "PAYLOAD_KEYS holds a development key"),
    ({"PAYLOAD_KEYS": f"2026-11:{PAYLOAD_KEYS.partition(':')[2]}"}, "PAYLOAD_KEYS holds a development key"),
    ({"PAYLOAD_KEYS": f"{payload_keys('2026-11')},{PAYLOAD_KEYS}"}, "PAYLOAD_KEYS holds a development key"),
    ({"PAYLOAD_KEYS": "2026-11:s3cret"}, "key 1 is not an id"),
    ({"PAYLOAD_KEYS": ""}, "key 1 is not an id"),
    ({"AUTHENTIK_AUDIENCE": "dezky-portal"}, "paired by position"),
    ({"AUTHENTIK_ISSUER": ""}, "paired by position"),
    ({"AUTHENTIK_ISSUER": "", "AUTHENTIK_AUDIENCE": " , "}, "paired by position"),
    ({"TRUSTED_PROXIES": "10.0.0.0/8,proxy.example.org"}, "proxy.example.org"),
    ({"ENVIRONMENT": "prod"}, "environment"),
    ({"MAX_BODY_BYTES": "1"}, "max_body_bytes"),
    ({"OCIS_URL": None}, "url"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_is_unfit_for_production_is_refused(read: Any, changes: dict[str, str | None], reason: str) -> None:
    """The process does not start, says why, and prints none of the secrets beside it."""
    with pytest.raises(ValidationError, match=reason) as raised:
        read(**changes)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("environment", ["development", "test", "staging"])
def test_elsewhere_development_secrets_are_fine(read: Any, environment: str) -> None:
    """Only production insists."""
    absent = dict.fromkeys(("STRIPE_API_KEY", "PAYLOAD_KEYS"))
    changes = {"OCIS_TOKEN": "dev-token", "DOMAIN_PROOF": "assume", "OPERATION_PROFILE": "fast", **absent}
    assert read(ENVIRONMENT=environment, **changes).domain_proof == "assume"


def test_secrets_do_not_print(read: Any) -> None:
    """Settings may be logged whole."""
    assert "s3cret" not in repr(read())
