"""Batch work: a folder or a list of pictures through this machine or through a server."""
