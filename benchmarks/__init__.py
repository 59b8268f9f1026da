"""Benchmarks of fastattn: `pytest benchmarks/ --benchmark-only`."""
