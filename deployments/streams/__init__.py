"""One Watch stream: its frames, its turns before the model, and what it answers."""
