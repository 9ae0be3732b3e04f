"""How far a graph, in the runtime that will serve it, is from a reference, and whether that is near
enough.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.agreement import compare_boxes, compare_masks
from service.bundle import Graph, Parity, Precision
from service.geometry import Geometry, Size, choose_canvas, place, to_canvas
from service.worker.runtimes.base import Array, Arrays, Runtime

FP32_LIMIT = 1e-5
COSINE_LIMIT = 0.999
# Of detectors and segmenters, whose decoders look where earlier layers found something: a rounding
# can move what a query sees.
STRUCTURED_LIMIT = 1e-3
STRUCTURED_COSINE_LIMIT = 0.99
FP32_COSINE_LIMIT = 0.9999
# In fp32 what is near a tie may turn over, and between the queries of random weights much is.
FP32_AGREEMENT_LIMIT = 0.9
REDUCED_AGREEMENT_LIMIT = 0.98
# 8 bits, of int8 and of fp8, change every picture a little: what counts is what a user gets.
EIGHT_BITS = ("int8", "fp8")
INT8_COSINE_LIMIT = 0.99
STRUCTURED_INT8_COSINE_LIMIT = 0.95
INT8_TOP1_LIMIT = 0.99
REDUCED_BATCH_LIMIT = 1e-3  # what a picture's neighbours may change below fp32: a rounding or two

_TIE = 4.0  # a top-1 may change where the margin is below this many rms errors of the logits

Floats = NDArray[np.float64]


def picture_inputs(
    graph: Graph,
    geometry: Geometry,
    canvases: list[Size],
    pictures: Sequence[Image.Image],
    most: int,
    sizes: Sequence[Size] | None = None,
) -> Arrays:
    """Inputs of a serving graph from at most so many pictures, as ``own_first`` chooses them.

    ``sizes`` of all pictures spare those that are not chosen from being decoded.
    """
    sizes = sizes or [_size(picture) for picture in pictures]
    chosen = own_first(graph.canvas, geometry, canvases, sizes)[:most]
    count = len(chosen)
    placements = [place(geometry, sizes[i], graph.canvas) for i in chosen]
    inputs: Arrays = {
        "images": np.stack(
            [to_canvas(pictures[i], at) for i, at in zip(chosen, placements, strict=True)]
        )
    }
    named = {tensor.name for tensor in graph.inputs}
    if "sizes" in named:
        valid = [at.valid for at in placements]
        inputs["sizes"] = np.array([[v.height, v.width] for v in valid], dtype=np.int32)
    if "threshold" in named:
        # Every other picture keeps nearly all queries, so that those of random weights merge too.
        inputs["threshold"] = np.where(np.arange(count) % 2, 0.02, 0.5).astype(np.float32)
        inputs["overlap_threshold"] = np.full(count, 0.8, dtype=np.float32)
    return inputs


def own_first(
    canvas: Size, geometry: Geometry, canvases: list[Size], sizes: Sequence[Size]
) -> list[int]:
    """Places of pictures of these sizes, those first that the server would put on this canvas."""
    others = [choose_canvas(geometry, size, canvases) != canvas for size in sizes]
    return sorted(range(len(sizes)), key=others.__getitem__)


def run_alone(runtime: Runtime, inputs: Arrays) -> Arrays:
    """One picture at a time."""
    rows = [
        runtime.run({name: array[i : i + 1] for name, array in inputs.items()})
        for i in range(_count(inputs))
    ]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def run_in_batches(runtime: Runtime, inputs: Arrays, batch: int = 8) -> Arrays:
    """The pictures in full batches, repeating from the first where they do not fill one."""
    count = _count(inputs)
    rows = []
    for start in range(0, count, batch):
        places = np.arange(start, start + batch) % count
        rows.append(runtime.run({name: array[places] for name, array in inputs.items()}))
    return {name: np.concatenate([row[name] for row in rows])[:count] for name in rows[0]}


def measure(graph: Graph, runtime: Runtime, expected: Arrays, inputs: Arrays) -> Parity:
    """How far the serving graph is from ``expected``, alone and in batches of eight."""
    alone, batched = run_alone(runtime, inputs), run_in_batches(runtime, inputs)
    return compare(graph, runtime, expected, alone, batched, inputs.get("sizes"))


def compare(
    graph: Graph,
    runtime: Runtime,
    expected: Arrays,
    found: Arrays,
    other: Arrays,
    sizes: Array | None = None,
) -> Parity:
    """The figures of what a runtime ``found``, and of the same pictures in batches of ``other``
    size; ``sizes`` (N, 2) are the valid parts of padded ones.

    Errors of scores are those of what was found, and ``batch_error`` is between the two. All else
    is the worse of the two against ``expected``, for scores tell nothing of boxes or masks.
    """
    errors = _score_errors(expected, found)
    both = (found, other)
    boxes = [compare_boxes(expected, one) for one in both] if "boxes" in expected else []
    masks = (
        [compare_masks(expected, one, graph.canvas, sizes) for one in both]
        if "masks" in expected
        else []
    )
    top1 = [_top1_agreement(expected, one) for one in both] if "embedding" in expected else []
    return Parity(
        runtime=runtime.name,  # type: ignore[arg-type]
        precision=runtime.precision,  # type: ignore[arg-type]
        canvas=graph.canvas,
        images=_count(expected),
        max_error=_largest(errors),
        rms_error=float(np.sqrt(np.square(errors).mean())),
        cosine=min(_cosine(name, expected, one) for name in _compared(expected) for one in both),
        top1_agreement=min((share for share in top1 if share is not None), default=None),
        batch_error=_largest(_score_errors(found, other)),
        embedding_error=_worst("embedding", expected, both),
        attention_error=_worst("attention", expected, both),
        box_error=max((one.error for one in boxes), default=None),
        box_agreement=min((one.agreement for one in boxes), default=None),
        mask_agreement=min(masks, default=None),
    )


def measure_explain(runtime: Runtime, expected: Arrays, inputs: Arrays) -> float:
    """The largest error of any output of the explain graph, alone or in a batch: absolute, and
    relative to the largest value of a picture where that is above one, as of logits.
    """
    found = (run_alone(runtime, inputs), run_in_batches(runtime, inputs))
    worst = 0.0
    for name, wanted in expected.items():
        rows = np.abs(wanted.astype(np.float64)).reshape(len(wanted), -1)
        scale = np.maximum(rows.max(axis=1), 1).reshape(-1, *(1,) * (wanted.ndim - 1))
        errors = (_error(name, expected, one) / scale for one in found)
        worst = max([worst, *map(_largest, errors)])
    return worst


def objections(parity: Parity) -> list[str]:
    """Why this pair of runtime and precision may not serve, one clause each; none if it may."""
    structured = parity.box_agreement is not None or parity.mask_agreement is not None
    if parity.precision == "fp32":
        cosine_limit, score_limit = (
            FP32_COSINE_LIMIT,
            STRUCTURED_LIMIT if structured else FP32_LIMIT,
        )
        limited = _errors_of_fp32(parity, score_limit)
    else:
        cosine_limit = _reduced_cosine_limit(parity.precision, structured)
        limited = _errors_of_reduced(parity)
    found = _low_agreement(parity)
    if not parity.cosine >= cosine_limit:
        found.append(f"smallest cosine is {parity.cosine:.5f} (limit {cosine_limit})")
    return found + [
        f"{what} is {error:.1e} (limit {limit:.0e})"
        for what, (error, limit) in limited.items()
        if error is not None and not error <= limit
    ]


def _reduced_cosine_limit(precision: Precision, structured: bool) -> float:
    if precision in EIGHT_BITS:
        return STRUCTURED_INT8_COSINE_LIMIT if structured else INT8_COSINE_LIMIT
    return STRUCTURED_COSINE_LIMIT if structured else COSINE_LIMIT


def _errors_of_fp32(parity: Parity, score_limit: float) -> dict[str, tuple[float | None, float]]:
    """Each error that fp32 is judged by, and its limit."""
    of_vectors = parity.embedding_error is not None and parity.top1_agreement is None
    return {
        "largest error" if of_vectors else "largest error of a score": (
            parity.max_error,
            score_limit,
        ),
        "largest difference between alone and batched": (parity.batch_error, score_limit),
        "largest relative error of the embedding": (parity.embedding_error, FP32_LIMIT),
        "largest error of the attention": (parity.attention_error, FP32_LIMIT),
        "largest error of the explain graph": (parity.explain_error, score_limit),
        "largest error of a box edge": (parity.box_error, STRUCTURED_LIMIT),
    }


def _errors_of_reduced(parity: Parity) -> dict[str, tuple[float | None, float]]:
    """Each error that fewer bits are judged by, and its limit.

    An engine's profiles are tuned apart, and kernels that add up in another order round otherwise:
    there each profile is held to the reference, and what lies between them is only told.
    """
    if parity.runtime == "tensorrt":
        return {}
    limit = REDUCED_BATCH_LIMIT
    return {"largest difference between alone and batched": (parity.batch_error, limit)}


def _low_agreement(parity: Parity) -> list[str]:
    limit = FP32_AGREEMENT_LIMIT if parity.precision == "fp32" else REDUCED_AGREEMENT_LIMIT
    agreements = {
        "top-1 agreement beyond ties": (
            parity.top1_agreement,
            INT8_TOP1_LIMIT if parity.precision in EIGHT_BITS else 1.0,
        ),
        "share of boxes that agree": (parity.box_agreement, limit),
        "share of pixels or instances that agree": (parity.mask_agreement, limit),
    }
    return [
        f"{what} is {share:.3f} (limit {least:g})"
        for what, (share, least) in agreements.items()
        if share is not None and not share >= least
    ]


def _compared(arrays: Arrays) -> list[str]:
    """The outputs whose direction is compared; rows of boxes may change places, scores hardly."""
    if "masks" in arrays:
        return ["logits", "masks"]
    if "boxes" in arrays:
        return ["scores"]
    return ["logits"] if "logits" in arrays else ["embedding"]


def _score_errors(expected: Arrays, found: Arrays) -> Floats:
    """Errors of probabilities, or of embeddings where there are none."""
    if "scores" in expected:
        return _error("scores", expected, found)
    if "logits" in expected:
        return np.abs(_softmax(found["logits"]) - _softmax(expected["logits"]))
    return _error("embedding", expected, found)


def _softmax(logits: NDArray[np.generic]) -> Floats:
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return shares


def _count(inputs: Mapping[str, NDArray[np.generic]]) -> int:
    return len(next(iter(inputs.values())))


def _error(name: str, expected: Arrays, found: Arrays) -> Floats:
    """Absolute; for the embedding in units of each picture's largest component."""
    wanted = expected[name].astype(np.float64)
    error = np.abs(found[name] - wanted)
    if name != "embedding":
        return error
    return error / np.maximum(np.abs(wanted).max(axis=-1, keepdims=True), np.finfo(float).tiny)


def _worst(name: str, expected: Arrays, answers: Sequence[Arrays]) -> float | None:
    """The largest error of an output in any of the answers; None where there is no such output."""
    if name not in expected:
        return None
    return max(_largest(_error(name, expected, one)) for one in answers)


def _largest(error: Floats) -> float:
    """NaN counts as infinite, so that no comparison lets it pass and JSON can hold it."""
    return float(np.nan_to_num(error, nan=np.finfo(float).max).max())


def _cosine(name: str, expected: Arrays, found: Arrays) -> float:
    """The smallest over the pictures, of one output, centred unless it is an embedding."""
    a, b = (one[name].astype(np.float64).reshape(len(one[name]), -1) for one in (expected, found))
    if name != "embedding" and a.shape[1] > 1:
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(float).tiny)
    return float(np.nan_to_num(cosines, nan=-1.0).min())


def _top1_agreement(expected: Arrays, found: Arrays) -> float | None:
    """The share of pictures with the same best class.

    A changed class counts as agreement where the two best logits were nearer to each other than
    the error. None without a head.
    """
    if "logits" not in expected:
        return None
    wanted, got = expected["logits"].astype(np.float64), found["logits"].astype(np.float64)
    tie = _TIE * np.sqrt(np.square(got - wanted).mean())
    best = got.argmax(axis=1)
    margin = wanted.max(axis=1) - np.take_along_axis(wanted, best[:, None], axis=1)[:, 0]
    return float((margin <= tie).mean())


def summary(parity: Parity) -> str:
    """The figures in one line, for people."""
    shares = {
        "top-1": parity.top1_agreement,
        "box": parity.box_agreement,
        "mask": parity.mask_agreement,
    }
    named = [
        f", {name} agreement {share:.3f}" for name, share in shares.items() if share is not None
    ]
    return (
        f"max error {parity.max_error:.1e}, rms {parity.rms_error:.1e}, "
        f"cosine {parity.cosine:.6f}{''.join(named)} on {parity.images} pictures"
    )


def _size(picture: Image.Image) -> Size:
    return Size(height=picture.height, width=picture.width)
