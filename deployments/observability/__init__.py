"""What the service tells those who run it: metrics, traces, logs, and what stages cost."""
