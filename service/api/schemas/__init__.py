"""Shapes of requests and responses over HTTP; floats carry six digits."""
