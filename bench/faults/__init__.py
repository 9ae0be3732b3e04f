"""A server under twice the load it can bear, whose processes die: what becomes of each request."""
