"""A thin client of a Saccade server: a picture goes in, a typed answer comes out."""

from saccade_client.client import AsyncClient, Client
from saccade_client.errors import (
    OutOfTime,
    ProblemError,
    Refused,
    SaccadeError,
    Unavailable,
    Unreachable,
)
from saccade_client.pictures import Picture
from saccade_client.results import (
    Attention,
    AttentionMap,
    Classification,
    Detection,
    Detections,
    Embedding,
    Prediction,
    Segment,
    Segmentation,
)

__all__ = [
    "AsyncClient",
    "Attention",
    "AttentionMap",
    "Classification",
    "Client",
    "Detection",
    "Detections",
    "Embedding",
    "OutOfTime",
    "Picture",
    "Prediction",
    "ProblemError",
    "Refused",
    "SaccadeError",
    "Segment",
    "Segmentation",
    "Unavailable",
    "Unreachable",
]
