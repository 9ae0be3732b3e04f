"""Measurements against the bare engine and against peers."""
