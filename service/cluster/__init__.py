"""The same server as replicas on Ray Serve; only ``application`` knows of Ray."""
