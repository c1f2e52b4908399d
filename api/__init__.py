"""The HTTP API: decode, authorise, one call, encode."""
