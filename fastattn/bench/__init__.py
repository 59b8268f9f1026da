"""Throughput tables for papers, `python -m fastattn bench`, and what every benchmark shares: rivals timed in turns,
devices, photographs, the machine's description."""
