"""The page at ``/``: its files as they are, and what its status strip shows."""

from service.api.page.routes import open_paths, router

__all__ = ["open_paths", "router"]
