"""Programs of web frameworks, as processes on real brokers."""

BROKERS = ["redis+stream", "rabbitmq", "kafka"]
