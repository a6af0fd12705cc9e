"""Benchmarks, as programs: ``python -m benchmarks.memory``."""
