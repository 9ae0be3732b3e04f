"""POST /v1/classify."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.calls import Call, answer_all
from service.api.openapi import describe
from service.api.schemas.classify import ClassifyAnswer, ClassifyOptions, Prediction
from service.tasks import classify

router = APIRouter()


@router.post("/v1/classify", **describe(ClassifyOptions, ClassifyAnswer))
async def classify_images(request: Request) -> Response:
    """Classes of one or many pictures, best first."""
    return await answer_all(request, "classify", ClassifyOptions, _classify)


async def _classify(call: Call, data: bytes, options: ClassifyOptions) -> ClassifyAnswer:
    defaults = call.manifest.defaults
    picture = await call.picture(data)
    result = await call.infer(picture, ("scores",))
    top_k = defaults.top_k if options.top_k is None else options.top_k
    threshold = defaults.threshold if options.threshold is None else options.threshold
    with call.serving.postprocessing(call.manifest, call.trace):
        found = classify.answer(call.manifest, result.outputs["scores"], top_k, threshold)
        predictions = [Prediction(**vars(prediction)) for prediction in found]
        return ClassifyAnswer(**call.about(picture, result.precision), predictions=predictions)
