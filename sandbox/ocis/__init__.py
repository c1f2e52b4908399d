"""Stand-in for ownCloud Infinite Scale 7.1: groups, project spaces and their members over LibreGraph."""

from sandbox.ocis.app import create_app

__all__ = ["create_app"]
