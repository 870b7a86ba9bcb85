"""Between messages of the proto and values of ours: reading, bounds, and errors."""
