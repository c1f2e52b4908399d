"""Stand-in for the part of Stripe Billing v1 that provisioning and price changes touch."""

from sandbox.stripe.app import create_app

__all__ = ["create_app"]
