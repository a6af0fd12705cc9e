"""Benchmarks, as one command: ``python -m benchmarks --help``; docs/performance.md says how they measure."""
