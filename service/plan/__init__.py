"""``saccade plan``: how many replicas answer a rate of pictures within a time, and at what cost."""
