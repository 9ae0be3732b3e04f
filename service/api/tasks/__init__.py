"""The routes that answer pictures, one file per task."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from service.api.tasks import attention, classify, detect, embed, segment

TASKS = (classify, detect, segment, embed, attention)

router = APIRouter()
for task in TASKS:
    router.include_router(task.router)


def handlers() -> dict[str, Callable[[Request], Awaitable[Response]]]:
    """What answers a POST, by path."""
    return {
        route.path: route.endpoint
        for task in TASKS
        for route in task.router.routes
        if isinstance(route, APIRoute)
    }
