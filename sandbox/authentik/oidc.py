"""The issuer side: one application with its own issuer and key per audience, and tokens minted on demand."""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from jwt.algorithms import RSAAlgorithm
from pydantic import Field

from sandbox.authentik.directory import Directory
from sandbox.authentik.errors import ApiError
from sandbox.faults import CamelModel
from sandbox.state import Document, State

APPLICATIONS = ("dezky-portal", "dezky-operator")
CONTEXT_CLASS = "goauthentik.io/providers/oauth2/default"
SCOPE = "profile email openid"
INVALID_GRANT = (
    "The provided authorization grant or refresh token is invalid, expired, revoked, or was issued to another client"
)


class TokenRequest(CamelModel):
    """Body of `POST /_sandbox/tokens`."""

    application: str
    username: str
    lifetime_seconds: int = 3600
    claims: dict[str, Any] = Field(default_factory=dict, description="override claims; null removes one")


class Issuers:
    """The applications; a key is made when it is first asked for, and kept: old tokens outlive a restart."""

    def __init__(self, state: State, directory: Directory, public_url: str) -> None:
        self._directory = directory
        self._base = f"{public_url.rstrip('/')}/application/o"
        self._applications = state.table("applications")

    def __contains__(self, slug: object) -> bool:
        """Say whether there is an application of that name."""
        return slug in APPLICATIONS

    def discovery(self, slug: str) -> Document:
        """Return the OpenID configuration of an application."""
        return {
            "issuer": self._issuer(slug),
            "authorization_endpoint": f"{self._base}/authorize/",
            "token_endpoint": f"{self._base}/token/",
            "userinfo_endpoint": f"{self._base}/userinfo/",
            "end_session_endpoint": f"{self._base}/{slug}/end-session/",
            "introspection_endpoint": f"{self._base}/introspect/",
            "revocation_endpoint": f"{self._base}/revoke/",
            "device_authorization_endpoint": f"{self._base}/device/",
            "backchannel_logout_supported": True,
            "backchannel_logout_session_supported": True,
            "frontchannel_logout_supported": True,
            "frontchannel_logout_session_supported": True,
            "response_types_supported": ["code"],
            "response_modes_supported": ["query", "fragment", "form_post"],
            "jwks_uri": f"{self._base}/{slug}/jwks/",
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "subject_types_supported": ["public"],
            "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
            "acr_values_supported": [CONTEXT_CLASS],
            "scopes_supported": ["openid", "email", "profile"],
            "request_parameter_supported": False,
            "claims_supported": ["sub", "iss", "aud", "exp", "iat", "auth_time", "acr", "email", "name", "groups"],
            "claims_parameter_supported": False,
            "code_challenge_methods_supported": ["plain", "S256"],
        }

    def jwks(self, slug: str) -> Document:
        """Return the public key of an application."""
        key = self._public(slug)
        return {"keys": [{"alg": "RS256", "kid": _key_id(key), "use": "sig", **key}]}

    def mint(self, request: TokenRequest) -> Document:
        """Return an access token as the application would get it after this user's login.

        Raises:
            ApiError: 404 for an unknown application or user, 400 `invalid_grant` for an inactive user.
        """
        if request.application not in self:
            raise _oauth_error(404, "invalid_client", f"no application is called {request.application!r}")
        user = self._directory.user_named(request.username)
        if user is None:
            raise _oauth_error(404, "invalid_grant", f"no user is called {request.username!r}")
        if not user["is_active"]:
            raise _oauth_error(400, "invalid_grant", INVALID_GRANT)
        now = datetime.now(UTC).replace(microsecond=0)
        expires = now + timedelta(seconds=request.lifetime_seconds)
        claims = {
            "iss": self._issuer(request.application),
            "sub": user["uuid"],
            "aud": request.application,
            "exp": int(expires.timestamp()),
            "iat": int(now.timestamp()),
            "auth_time": int(now.timestamp()),
            "acr": CONTEXT_CLASS,
            "jti": secrets.token_hex(20),
            "email": user["email"],
            "email_verified": False,
            "name": user["name"],
            "given_name": user["name"],
            "preferred_username": user["username"],
            "nickname": user["username"],
            "groups": [group["name"] for group in self._directory.groups_of(user)],
            "azp": request.application,
            # Despite its name it identifies the token, not the user.
            "uid": secrets.token_hex(20),
            "scope": SCOPE,
            **request.claims,
        }
        token = jwt.encode(
            {name: value for name, value in claims.items() if value is not None},
            self._key(request.application),
            algorithm="RS256",
            headers={"kid": _key_id(self._public(request.application))},
        )
        return {"accessToken": token, "expiresAt": expires.isoformat().replace("+00:00", "Z")}

    def _issuer(self, slug: str) -> str:
        return f"{self._base}/{slug}/"

    def _key(self, slug: str) -> rsa.RSAPrivateKey:
        stored = self._applications.get(slug)
        if stored is None:
            fresh = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            pem = fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            stored = self._applications.put(slug, {"slug": slug, "key": pem.decode()})
        key = load_pem_private_key(stored["key"].encode(), password=None)
        assert isinstance(key, rsa.RSAPrivateKey)
        return key

    def _public(self, slug: str) -> Document:
        key = RSAAlgorithm.to_jwk(self._key(slug).public_key(), as_dict=True)
        return {name: key[name] for name in ("kty", "n", "e")}


def _key_id(key: Document) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _oauth_error(status: int, error: str, description: str) -> ApiError:
    body = {"error": error, "error_description": description, "request_id": secrets.token_hex(16)}
    return ApiError(status, body)
