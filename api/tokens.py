"""Access tokens: who issued one, for whom, and about whom."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt

from domain.errors import Unauthenticated, Unavailable
from runtime.logging import get_logger

log = get_logger(__name__)

# Asymmetric only: with HS256 in the list, the public key would be a secret that everybody knows.
ALGORITHMS = ("RS256", "ES256")
LEEWAY_SECONDS = 10
KEYS_LAST_SECONDS = 3600.0
# A stream of made-up key ids must not become a stream of requests to the issuer.
REFRESH_AT_MOST_EVERY_SECONDS = 10.0
# Sooner while no key is known, since nobody can log in; still not once a request.
FIRST_KEYS_AT_MOST_EVERY_SECONDS = 1.0
FETCH_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Claims:
    """What a valid token proves."""

    subject: str
    issuer: str
    audience: str
    expires_at: int  # seconds since the epoch


@dataclass
class _Issuer:
    url: str
    audiences: list[str]
    keys: dict[str, jwt.PyJWK] = field(default_factory=dict)
    fetched_at: float = float("-inf")
    tried_at: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class TokenVerifier:
    """Verifies access tokens of the configured (issuer, audience) pairs."""

    def __init__(self, trusted: list[tuple[str, str]], http: httpx.AsyncClient) -> None:
        self._http = http
        self._issuers: dict[str, _Issuer] = {}
        for url, audience in trusted:
            self._issuers.setdefault(url, _Issuer(url=url, audiences=[])).audiences.append(audience)

    async def verify(self, token: str) -> Claims:
        """Return what a token proves.

        `exp`, `iss`, `aud` and `sub` must be there; `nbf` and `iat` are checked where the issuer sends them
        (Authentik sends no `nbf`).

        Raises:
            Unauthenticated: it proves nothing; the code says why.
            Unavailable: the issuer's keys cannot be fetched, and none are known.
        """
        try:
            header = jwt.get_unverified_header(token)
            unverified = jwt.decode(token, options={"verify_signature": False})
        except jwt.PyJWTError:
            raise _refused("The token cannot be read.") from None
        if header.get("alg") not in ALGORITHMS:
            raise _refused("The token's algorithm is not accepted.")
        issuer = self._issuers.get(str(unverified.get("iss")))
        if issuer is None:
            raise _refused("The token's issuer is not trusted.")
        key = await self._key(issuer, str(header.get("kid")))
        if key is None or key.algorithm_name != header["alg"]:
            raise _refused("The token's key is not one of its issuer's.")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key=key,
                algorithms=[key.algorithm_name],
                audience=issuer.audiences,
                issuer=issuer.url,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise _refused("The token has expired.", code="token_expired") from None
        except jwt.InvalidAudienceError:
            raise _refused("The token's issuer may not vouch for this audience.") from None
        except jwt.PyJWTError:
            raise _refused("The token is not valid.") from None
        named = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        audience = next(each for each in issuer.audiences if each in named)
        return Claims(subject=str(claims["sub"]), issuer=issuer.url, audience=audience, expires_at=int(claims["exp"]))

    async def _key(self, issuer: _Issuer, kid: str) -> jwt.PyJWK | None:
        fresh = time.monotonic() - issuer.fetched_at < KEYS_LAST_SECONDS
        if not (fresh and kid in issuer.keys):
            await self._refresh(issuer)
        return issuer.keys.get(kid)

    async def _refresh(self, issuer: _Issuer) -> None:
        async with issuer.lock:
            pause = REFRESH_AT_MOST_EVERY_SECONDS if issuer.keys else FIRST_KEYS_AT_MOST_EVERY_SECONDS
            if time.monotonic() - issuer.tried_at >= pause:
                await self._fetch(issuer)
                # After the attempt: those who waited for it must not each make one of their own.
                issuer.tried_at = time.monotonic()
        if not issuer.keys:
            raise Unavailable("The login service cannot be reached.", code="issuer_unavailable")

    async def _fetch(self, issuer: _Issuer) -> None:
        """Fetch an issuer's keys; the known ones stay if that fails."""
        try:
            discovery = await self._get(f"{issuer.url.rstrip('/')}/.well-known/openid-configuration")
            keys = jwt.PyJWKSet.from_dict(await self._get(discovery["jwks_uri"]))
        except (httpx.HTTPError, httpx.InvalidURL, jwt.PyJWTError, KeyError, ValueError) as error:
            log.warning("issuer_keys_not_fetched", issuer=issuer.url, error=type(error).__name__)
            return
        issuer.keys = {key.key_id: key for key in keys.keys if key.key_id and key.algorithm_name in ALGORITHMS}
        issuer.fetched_at = time.monotonic()

    async def _get(self, url: str) -> dict[str, Any]:
        response = await self._http.get(url, timeout=FETCH_TIMEOUT_SECONDS)
        response.raise_for_status()
        body = response.json()
        if not isinstance(body, dict):
            raise ValueError("not an object")
        return body


def _refused(message: str, *, code: str = "token_invalid") -> Unauthenticated:
    return Unauthenticated(message, code=code)
