"""Stand-in for Authentik 2026.8: groups, users and the OIDC documents of the two Dezky applications."""

from sandbox.authentik.app import create_app

__all__ = ["create_app"]
