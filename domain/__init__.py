"""Models, rules and names of the control plane. Pure: no clock, no I/O, no settings."""
