"""An OpenID provider with an application, an issuer and a key per audience, which mints what a test asks for."""

from __future__ import annotations

import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

PORTAL, OPERATOR = "dezky-portal", "dezky-operator"


class Issuers:
    """The provider. `url` is where it is served; `fetched` counts the requests for keys."""

    def __init__(self) -> None:
        self.url = ""
        self.fetched = 0
        self.away = False
        self.keys = {
            name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in (PORTAL, OPERATOR)
        }
        self.app = Starlette(
            routes=[
                Route("/application/o/{name}/.well-known/openid-configuration", self._discovery),
                Route("/application/o/{name}/jwks/", self._jwks),
            ]
        )

    def issuer(self, application: str) -> str:
        """Return the issuer of an application."""
        return f"{self.url}/application/o/{application}/"

    def claims(self, application: str, subject: str) -> dict[str, Any]:
        """Return the claims of a good access token."""
        now = int(time.time())
        issuer = self.issuer(application)
        return {"iss": issuer, "sub": subject, "aud": application, "iat": now, "exp": now + 3600}

    def token(self, application: str, subject: str, *, kid: str | None = None, **changes: Any) -> str:
        """Return an access token signed with the application's key; a claim that is changed to None is left out."""
        claims = {**self.claims(application, subject), **changes}
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self.keys[application], algorithm="RS256", headers={"kid": kid or application})

    async def _discovery(self, request: Request) -> JSONResponse:
        if self.away:
            return JSONResponse({}, 503)
        issuer = self.issuer(request.path_params["name"])
        return JSONResponse({"issuer": issuer, "jwks_uri": f"{issuer}jwks/"})

    async def _jwks(self, request: Request) -> JSONResponse:
        self.fetched += 1
        name = request.path_params["name"]
        key = RSAAlgorithm.to_jwk(self.keys[name].public_key(), as_dict=True)
        return JSONResponse({"keys": [{"alg": "RS256", "use": "sig", **key, "kid": name}]})
