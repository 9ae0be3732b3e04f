"""Open Inference Protocol v2 over REST, at /v2."""

from fastapi import APIRouter

from service.api.oip import repository, routes

router = APIRouter()
router.include_router(routes.router)
router.include_router(repository.router)
