"""Every setting of the API and the worker, read from the environment once at start."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from domain.provisioning import RetryProfile
from runtime.key_ring import KeyRing

# What the embedded stack uses and production must not.
DEVELOPMENT_SECRET_PREFIX = "dev-"  # noqa: S105 - it marks what is no secret


class _Group(BaseSettings):
    # An error names what is wrong; the values beside it may be secrets.
    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


CommaSeparated = Annotated[list[str], NoDecode]


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class AuthentikSettings(_Group):
    """Login. Issuers and audiences pair up by position: an issuer can never vouch for another's audience."""

    model_config = SettingsConfigDict(env_prefix="AUTHENTIK_")

    url: str
    token: SecretStr
    issuer: CommaSeparated
    audience: CommaSeparated

    _lists = field_validator("issuer", "audience", mode="before")(_split)

    @model_validator(mode="after")
    def _paired(self) -> AuthentikSettings:
        if not self.issuer or len(self.issuer) != len(self.audience):
            raise ValueError("AUTHENTIK_ISSUER and AUTHENTIK_AUDIENCE must list as many values, paired by position")
        return self

    @property
    def trusted(self) -> list[tuple[str, str]]:
        """Return the (issuer, audience) pairs."""
        return list(zip(self.issuer, self.audience, strict=True))


class StalwartSettings(_Group):
    """Mail. The generation of the cluster's management API is pinned, never guessed."""

    model_config = SettingsConfigDict(env_prefix="STALWART_")

    url: str
    token: SecretStr
    generation: Literal["jmap"] = "jmap"


class OcisSettings(_Group):
    """Files."""

    model_config = SettingsConfigDict(env_prefix="OCIS_")

    url: str
    token: SecretStr


class StripeSettings(_Group):
    """Billing; everything starts without a key while it is dark."""

    model_config = SettingsConfigDict(env_prefix="STRIPE_")

    api_key: SecretStr | None = None
    api_base: str | None = Field(default=None, description="for a stand-in; absent = Stripe")
    rate_per_second: float = Field(default=15.0, gt=0, description="activities started over all workers")
    days_until_due: int = Field(default=14, ge=1, le=365, description="of an invoice, in days")


class Settings(_Group):
    """All settings."""

    environment: Literal["development", "test", "staging", "production"] = "development"
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    api_host: str = "127.0.0.1"
    api_port: int = 8400
    public_url: str = Field(default="http://127.0.0.1:8400", description="base of problem type URIs")
    trusted_proxies: CommaSeparated = Field(default_factory=list, description="addresses or networks (CIDR)")
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)

    mongo_url: SecretStr = SecretStr("mongodb://127.0.0.1:27017/?replicaSet=rs0")
    mongo_database: str = "dezky"

    payload_keys: SecretStr | None = Field(default=None, description="`id:base64` of 32 bytes; the first encrypts")
    temporal_ui_url: str | None = None
    worker_metrics_host: str = "127.0.0.1"
    worker_metrics_port: int | None = None
    operation_profile: RetryProfile = RetryProfile.PRODUCTION

    domain_proof: Literal["assume", "dns"] = "dns"
    billing_stripe_enabled: bool = False

    authentik: AuthentikSettings = Field(default_factory=lambda: AuthentikSettings())
    stalwart: StalwartSettings = Field(default_factory=lambda: StalwartSettings())
    ocis: OcisSettings = Field(default_factory=lambda: OcisSettings())
    stripe: StripeSettings = Field(default_factory=StripeSettings)

    _lists = field_validator("trusted_proxies", mode="before")(_split)

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for each in value:
            ipaddress.ip_network(each, strict=False)
        return value

    @field_validator("payload_keys")
    @classmethod
    def _are_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            KeyRing.parse(value.get_secret_value())
        return value

    @property
    def key_ring(self) -> KeyRing | None:
        """Return what encrypts payloads, None if nothing does."""
        return KeyRing.parse(self.payload_keys.get_secret_value()) if self.payload_keys is not None else None

    @model_validator(mode="after")
    def _payloads_encrypted_in_production(self) -> Settings:
        if self.environment == "production":
            keys = self.key_ring
            if keys is None:
                raise ValueError("PAYLOAD_KEYS is needed: Temporal would keep payloads in clear")
            if keys.has_development_key:
                raise ValueError("PAYLOAD_KEYS holds a development key")
        return self

    @model_validator(mode="after")
    def _fit_for_production(self) -> Settings:
        if self.environment != "production":
            return self
        if self.domain_proof == "assume":
            raise ValueError("DOMAIN_PROOF=assume is for development: anybody could claim any domain")
        if self.operation_profile is not RetryProfile.PRODUCTION:
            raise ValueError("OPERATION_PROFILE must be production")
        secrets = {
            "AUTHENTIK_TOKEN": self.authentik.token,
            "STALWART_TOKEN": self.stalwart.token,
            "OCIS_TOKEN": self.ocis.token,
            "STRIPE_API_KEY": self.stripe.api_key,
        }
        for name, secret in secrets.items():
            if secret is not None and secret.get_secret_value().startswith(DEVELOPMENT_SECRET_PREFIX):
                raise ValueError(f"{name} is a development secret")
            if secret is not None and not secret.get_secret_value():
                raise ValueError(f"{name} is empty")
        if self.stripe.api_base is not None:
            raise ValueError("STRIPE_API_BASE is for a stand-in")
        if self.billing_stripe_enabled and self.stripe.api_key is None:
            raise ValueError("BILLING_STRIPE_ENABLED needs STRIPE_API_KEY")
        return self
