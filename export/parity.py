"""Proof that a graph, in the runtime that will serve it, equals the checkpoint in PyTorch fp32."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.bundle import Graph, Parity
from service.worker.runtimes.base import Arrays, Runtime

FP32_LIMIT = 1e-5
COSINE_LIMIT = 0.999
REDUCED_BATCH_LIMIT = 1e-3  # what a picture's neighbours may change below fp32: a rounding or two

_TIE = 4.0  # a top-1 may change where the margin is below this many rms errors of the logits

Floats = NDArray[np.float64]


def reference(head: nn.Module, inputs: Arrays) -> Arrays:
    """What PyTorch computes in fp32, one picture at a time."""
    with torch.inference_mode():
        rows = [
            head(**{name: torch.from_numpy(array[i : i + 1]) for name, array in inputs.items()})
            for i in range(_count(inputs))
        ]
    return {name: np.concatenate([row[name].numpy() for row in rows]) for name in rows[0]}


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
    errors = {name: _error(name, expected, alone) for name in expected}
    spread = {name: _error(name, alone, batched) for name in expected}
    name = "scores" if "scores" in expected else "embedding"
    attention = errors.get("attention")
    return Parity(
        runtime=runtime.name,  # type: ignore[arg-type]
        precision=runtime.precision,  # type: ignore[arg-type]
        canvas=graph.canvas,
        images=_count(inputs),
        max_error=_largest(errors[name]),
        rms_error=float(np.sqrt(np.square(errors[name]).mean())),
        cosine=_cosine(expected, alone),
        top1_agreement=_top1_agreement(expected, alone),
        batch_error=_largest(spread[name]),
        embedding_error=_largest(errors["embedding"]),
        attention_error=None if attention is None else _largest(attention),
    )


def measure_explain(runtime: Runtime, expected: Arrays, inputs: Arrays) -> float:
    """The largest absolute error of any map of the explain graph, alone or in a batch."""
    found = (run_alone(runtime, inputs), run_in_batches(runtime, inputs))
    return max(_largest(_error(name, expected, one)) for one in found for name in expected)


def objections(parity: Parity) -> list[str]:
    """Why this pair of runtime and precision may not serve, one clause each; none if it may."""
    if parity.precision == "fp32":
        errors = {
            "largest error of a score" if parity.top1_agreement is not None else "largest error": (
                parity.max_error
            ),
            "largest difference between alone and batched": parity.batch_error,
            "largest relative error of the embedding": parity.embedding_error,
            "largest error of the attention": parity.attention_error,
            "largest error of the explain graph": parity.explain_error,
        }
        return [
            f"{what} is {error:.1e} (limit {FP32_LIMIT:.0e})"
            for what, error in errors.items()
            if error is not None and not error <= FP32_LIMIT
        ]
    found = []
    if not parity.cosine >= COSINE_LIMIT:
        found.append(f"smallest cosine is {parity.cosine:.5f} (limit {COSINE_LIMIT})")
    if parity.batch_error is not None and not parity.batch_error <= REDUCED_BATCH_LIMIT:
        found.append(
            f"largest difference between alone and batched is {parity.batch_error:.1e} "
            f"(limit {REDUCED_BATCH_LIMIT:.0e})"
        )
    if parity.top1_agreement is not None and not parity.top1_agreement >= 1:
        found.append(f"top-1 agreement beyond ties is {parity.top1_agreement:.3f} (limit 1)")
    return found


def _count(inputs: Mapping[str, NDArray[np.generic]]) -> int:
    return len(next(iter(inputs.values())))


def _error(name: str, expected: Arrays, found: Arrays) -> Floats:
    """Absolute; for the embedding in units of each picture's largest component."""
    wanted = expected[name].astype(np.float64)
    error = np.abs(found[name] - wanted)
    if name != "embedding":
        return error
    return error / np.maximum(np.abs(wanted).max(axis=-1, keepdims=True), np.finfo(float).tiny)


def _largest(error: Floats) -> float:
    """NaN counts as infinite, so that no comparison lets it pass and JSON can hold it."""
    return float(np.nan_to_num(error, nan=np.finfo(float).max).max())


def _cosine(expected: Arrays, found: Arrays) -> float:
    """The smallest over the pictures, of centred logits, or of embeddings without a head."""
    name = "logits" if "logits" in expected else "embedding"
    a, b = expected[name].astype(np.float64), found[name].astype(np.float64)
    if name == "logits" and a.shape[1] > 1:
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
    agreement = parity.top1_agreement
    top1 = "" if agreement is None else f", top-1 agreement {agreement:.3f}"
    return (
        f"max error {parity.max_error:.1e}, rms {parity.rms_error:.1e}, "
        f"cosine {parity.cosine:.6f}{top1} on {parity.images} pictures"
    )
