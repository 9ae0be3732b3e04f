"""Open Inference Protocol v2 over REST, at /v2."""

from service.api.oip.routes import router

__all__ = ["router"]
