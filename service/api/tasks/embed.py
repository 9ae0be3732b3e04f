"""POST /v1/embed."""

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.calls import Call, answer_all
from service.api.openapi import describe
from service.api.schemas.embed import EmbedAnswer, EmbedOptions

router = APIRouter()


@router.post("/v1/embed", **describe(EmbedOptions, EmbedAnswer))
async def embed_images(request: Request) -> Response:
    """A vector for each picture: what the model's head would read."""
    return await answer_all(request, "embed", EmbedOptions, _embed)


async def _embed(call: Call, data: bytes, options: EmbedOptions) -> EmbedAnswer:
    picture = await call.picture(data)
    result = await call.infer(picture, ("embedding",))
    with call.serving.postprocessing(call.manifest, call.trace):
        vector = result.outputs["embedding"].astype(np.float64)
        if options.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return EmbedAnswer(**call.about(picture, result.precision), embedding=vector.tolist())
