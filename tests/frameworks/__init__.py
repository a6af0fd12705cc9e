"""Programs of web frameworks, as processes on real brokers."""
