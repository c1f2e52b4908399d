"""Measurements, run by `make bench`: ratios side by side in one run, never a test."""
