"""What is lost and what is repeated when processes, connections and brokers fail: see ``python -m tests.faults``."""
