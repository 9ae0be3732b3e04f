"""Decoding that can be killed: which pictures go to processes of their own, and those processes."""
