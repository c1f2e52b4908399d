"""Clients of the outside systems: typed models in and out, no retries, no settings, no logging of bodies."""
