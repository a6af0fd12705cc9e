"""What an emit says, and what then lies at the broker, while connections, brokers and programs fail."""
