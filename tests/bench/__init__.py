"""Comparisons with other relays, on one machine in one run: `tests/bench/run`."""
