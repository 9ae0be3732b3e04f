"""The routes that answer pictures, one file per task."""

from fastapi import APIRouter

from service.api.tasks import attention, classify, detect, embed, segment

router = APIRouter()
for task in (classify, detect, segment, embed, attention):
    router.include_router(task.router)
