"""One module per job: deterministic, and readable as a story."""
