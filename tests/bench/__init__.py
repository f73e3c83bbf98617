"""Benchmarks against the peers: ``python -m tests.bench`` prints ratios and whether each meets what is required.

Nothing here is a test: no file is named ``test_*``, nothing is timed under pytest, and the exit code never depends on speed,
only on whether every run gave a correct answer. ``docs/performance.md`` says what each row means.
"""
