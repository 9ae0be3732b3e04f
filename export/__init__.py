"""Offline: from a checkpoint to a bundle of proven graphs."""
