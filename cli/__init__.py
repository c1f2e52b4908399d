"""The `dezky` command."""
