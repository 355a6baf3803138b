"""Measurements that print ratios taken in one run: `python -m benchmarks` (or `make bench`)."""
