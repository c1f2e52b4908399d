"""Stand-in for the JMAP management interface of Stalwart 0.16.15 and later, community edition."""

from sandbox.stalwart.app import create_app

__all__ = ["create_app"]
