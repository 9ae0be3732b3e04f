"""What a model gives in tensors: which there are, how a picture gets them, how pictures share one.

They say what the answers under /v1 say, before any threshold but those of segmentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.api.calls import Call
from service.api.oip.codec import Tensor
from service.api.schemas.oip import Datatype, InferParameters, InferRequest, TensorMetadata
from service.api.schemas.segment import SegmentOptions
from service.api.tasks.segment import find_segments, request_of
from service.bundle import Manifest
from service.errors import InvalidBody, InvalidParameter
from service.geometry import Placement, Size
from service.pictures import Picture
from service.tasks import detect, masks, segment
from service.tasks.detect import boxes_on_picture
from service.worker.runtimes.base import Array, Arrays

Found = dict[str, Array | list[bytes]]
"""Outputs of one picture, without the axis of pictures."""

SIZES = "sizes"
"""Height and width of the upright picture."""

_OF_TASK = {
    "classify": ("scores",),
    "embed": ("embedding",),
    "attention": ("attention",),
    "detect": detect.OUTPUTS,
}
_SEGMENTS: dict[str, tuple[Datatype, list[int]]] = {
    "segment_map": ("BYTES", [-1]),
    "segment_classes": ("INT32", [-1, -1]),
    "segment_scores": ("FP32", [-1, -1]),
    "masks": ("BYTES", [-1, -1]),
}
_SEGMENT_PARAMETERS = ("mode", "threshold", "overlap_threshold")


def catalogue(manifest: Manifest) -> dict[str, TensorMetadata]:
    """Every output of a model, by name, in order; the first axis is that of the pictures."""
    graphs = [graph for graph in manifest.graphs if graph.kind == "serve"]
    names = [name for task in manifest.tasks for name in _OF_TASK.get(task, ())]
    outputs: dict[str, tuple[Datatype, list[int]]] = {}
    for name in names:
        shapes = [one.shape for graph in graphs for one in graph.outputs if one.name == name]
        if shapes:  # the attention of some families is in the explain graph alone
            sizes = [axis[0] if len(set(axis)) == 1 else -1 for axis in zip(*shapes, strict=True)]
            outputs[name] = ("INT32" if name in ("classes", "queries") else "FP32", sizes)
    if "segment" in manifest.tasks:
        outputs |= _SEGMENTS
    outputs[SIZES] = ("INT32", [-1, 2])
    return {
        name: TensorMetadata(name=name, datatype=datatype, shape=shape)
        for name, (datatype, shape) in outputs.items()
    }


@dataclass(frozen=True)
class Wanted:
    """What a request asks of each of its pictures; ``classes`` is by output the number of classes
    to name instead of their scores.
    """

    names: tuple[str, ...]
    segments: segment.Request | None
    classes: dict[str, int]

    @property
    def of_graph(self) -> tuple[str, ...]:
        """What to fetch besides what segments are made of."""
        return tuple(name for name in self.names if name not in (*_SEGMENTS, SIZES))

    @classmethod
    def of(cls, manifest: Manifest, request: InferRequest) -> "Wanted":
        """What is wanted of a model.

        Raises:
            InvalidBody: it has no such output.
            InvalidParameter: it has no such mode, or cannot do what an output's parameters ask.
        """
        asked = request.outputs or []
        segments = _segments(manifest, request.parameters)
        names = _names(manifest, [output.name for output in asked], segments)
        classes = {
            one.name: one.parameters.classification
            for one in asked
            if one.parameters.classification
        }
        if classes and (classes.keys() != {"scores"} or "classify" not in manifest.tasks):
            raise InvalidParameter(
                "classification: only the output 'scores' of a classifier has classes to name",
                parameter="classification",
            )
        wants_segments = any(name in _SEGMENTS for name in names)
        return cls(names, segments if wants_segments else None, classes)


def _names(
    manifest: Manifest, asked: list[str], segments: segment.Request | None
) -> tuple[str, ...]:
    """Which outputs to give; without being asked, masks only where there is no map of them all."""
    given = catalogue(manifest)
    has_map = segments is None or segment.has_id_map(manifest, segments.mode)
    if not asked:
        absent = "masks" if has_map else "segment_map"
        return tuple(name for name in given if name != absent)
    if not given.keys() >= set(asked) or len(set(asked)) != len(asked):
        raise InvalidBody(
            f"found the outputs {', '.join(f'{name!r:.80}' for name in asked)}; "
            f"{manifest.name!r} has, once each, {', '.join(given)}"
        )
    if segments is not None and not has_map and "segment_map" in asked:
        raise InvalidParameter(
            f"segment_map: masks of mode {segments.mode!r} may overlap, so that they have no map; "
            "ask for the output 'masks'",
            parameter="mode",
        )
    return tuple(asked)


def _segments(manifest: Manifest, asked: InferParameters) -> segment.Request | None:
    given = {name: getattr(asked, name) for name in _SEGMENT_PARAMETERS}
    if "segment" in manifest.tasks:
        return request_of(manifest, SegmentOptions(**given))
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise InvalidParameter(
            f"{', '.join(wrong)}: of segmentation, which {manifest.name!r} cannot do",
            parameters=wrong,
        )
    return None


async def answer_one(call: Call, sent: bytes | Array, wanted: Wanted) -> Found:
    """The wanted outputs of one picture, encoded or in pixels of the canvas."""
    if isinstance(sent, bytes):
        picture = await call.picture(sent)
    else:
        picture = _on_canvas(call.manifest, sent, call.trace.started_s)
    image = picture.placement.image
    found: Found = {SIZES: np.array((image.height, image.width))}
    if wanted.of_graph:
        result = await call.infer(picture, wanted.of_graph)
        with call.serving.postprocessing(call.manifest, call.trace):
            found |= _outside(call.manifest, picture.placement, result.outputs)
    if wanted.segments is not None:
        segments, _ = await find_segments(call, picture, wanted.segments)
        names = wanted.names
        found |= await call.offload(lambda: _tensors(call.manifest, segments, names))
    return found


def _on_canvas(manifest: Manifest, pixels: Array, started_s: float) -> Picture:
    """A picture that is its own canvas."""
    size = Size(height=pixels.shape[0], width=pixels.shape[1])
    if size not in manifest.canvases:
        raise InvalidBody(
            f"found pixels of {size} (height x width); {manifest.name!r} takes them at "
            f"{', '.join(map(str, manifest.canvases))}, and encoded pictures (BYTES) of any size"
        )
    whole = Placement(
        image=size, canvas=size, resized=size, top=0, left=0, valid=size, interpolation="bilinear"
    )
    return Picture(whole, pixels, None, started_s, decode_s=0.0, preprocess_s=0.0)


def _outside(manifest: Manifest, placement: Placement, outputs: Arrays) -> Found:
    """Outputs of the graph in terms of the picture and of the model's labels."""
    found: Found = dict(outputs)
    if "boxes" in outputs:
        found["boxes"] = boxes_on_picture(outputs["boxes"], placement)
    if "classes" in outputs:
        found["classes"] = np.array([label.id for label in manifest.labels])[outputs["classes"]]
    return found


def _tensors(manifest: Manifest, found: segment.Segmentation, names: tuple[str, ...]) -> Found:
    """Rows of a segmentation; the ids of its map count them from 1."""
    rows: Found = {
        "segment_classes": np.array(
            [manifest.labels[one.index].id for one in found.segments], np.int32
        ),
        "segment_scores": np.array([one.score or 0.0 for one in found.segments], np.float32),
    }
    if "segment_map" in names and found.ids is not None:
        rows["segment_map"] = [masks.id_map_png(found.ids)]
    if "masks" in names:
        rows["masks"] = [
            masks.mask_png(one.region.crop, *one.region.box[:2], found.size)
            for one in found.segments
        ]
    return rows


def join(manifest: Manifest, wanted: Wanted, pictures: Sequence[Found]) -> list[Tensor]:
    """One tensor for each wanted output of all pictures.

    Pictures with fewer segments than others are filled up: class -1, score 0, an empty mask.

    Raises:
        InvalidBody: an output differs in shape between pictures, which have different canvases.
    """
    known = catalogue(manifest)
    return [
        _named(manifest, pictures, wanted.classes[name])
        if name in wanted.classes
        else _joined(known[name], [found[name] for found in pictures])
        for name in wanted.names
    ]


def _joined(known: TensorMetadata, values: list[Array | list[bytes]]) -> Tensor:
    name, datatype = known.name, known.datatype
    if datatype == "BYTES":
        rows = [value for value in values if isinstance(value, list)]
        most = max(map(len, rows))
        shape = [len(rows)] if known.shape == [-1] else [len(rows), most]
        return Tensor(name, datatype, shape, [one for row in rows for one in _filled(row, most)])
    arrays = [np.asarray(value) for value in values]
    if name in _SEGMENTS:
        most = max(map(len, arrays))
        fill = -1 if name == "segment_classes" else 0
        arrays = [np.pad(array, (0, most - len(array)), constant_values=fill) for array in arrays]
    if len({array.shape for array in arrays}) > 1:
        raise InvalidBody(
            f"the output {name!r} has another shape for each canvas, and the pictures of this "
            "request have different ones; send them one by one, or ask for other outputs"
        )
    together = np.stack(arrays)
    return Tensor(name, datatype, list(together.shape), together)


def _filled(row: list[bytes], most: int) -> list[bytes]:
    return row + [b""] * (most - len(row))


def _named(manifest: Manifest, pictures: Sequence[Found], count: int) -> Tensor:
    """The classification extension: score, index and label of the best classes."""
    texts = []
    for found in pictures:
        scores = np.asarray(found["scores"])
        best = np.argsort(-scores, kind="stable")[:count]
        texts += [f"{scores[i]:f}:{i}:{manifest.labels[i].name}".encode() for i in best]
    shape = [len(pictures), len(texts) // len(pictures)]
    return Tensor("scores", "BYTES", shape, texts, text=True)
