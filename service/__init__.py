"""The server: bytes in, answers out; numpy, no torch."""
