"""``saccade bench``: load from outside on a running server, and what came of it."""
