"""HTTP: the only folder that knows of FastAPI and of statuses."""
