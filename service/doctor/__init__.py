"""``saccade doctor``: what this machine has, what would serve each model on it, what is wrong."""
