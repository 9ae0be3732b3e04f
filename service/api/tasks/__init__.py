"""The routes that answer pictures, one file per task."""

from fastapi import APIRouter

from service.api.tasks import attention, classify, embed

router = APIRouter()
for task in (classify, embed, attention):
    router.include_router(task.router)
