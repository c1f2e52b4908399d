"""The steps of every job, one class per area: observe, decide, act."""
