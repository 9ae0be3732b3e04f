"""Saccade against other servers: the same picture, the same network, the same machine, one run."""
