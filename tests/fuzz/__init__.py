"""Bad input: generated, and by name on every transport. ``python -m tests.fuzz`` prints what became of it."""
