"""Failed allocations are told from other failures, and make batches smaller for a while."""

import numpy as np
import onnxruntime as ort
import pytest

from service.worker.memory import LOWERED_S, Lowered, ran_out_of_memory
from tests.service.poisonous_bundle import poisonous_graph


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Exception from src/inference: could not allocate memory for tensor"),
        RuntimeError("CUDA failure 2: out of memory"),
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_a_failed_allocation_is_known_by_its_class_or_its_words(error: Exception) -> None:
    assert ran_out_of_memory(error)


@pytest.mark.parametrize("error", [ValueError("bad shape"), RuntimeError("invalid argument")])
def test_another_failure_is_none(error: Exception) -> None:
    assert not ran_out_of_memory(error)


def test_what_onnx_runtime_really_raises_is_known() -> None:
    session = ort.InferenceSession(
        poisonous_graph().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[..., 1] = 255
    assert session.run(None, {"images": images[:1]})[0].tolist() == [[0, 1, 0]]
    with pytest.raises(Exception, match="memory") as raised:
        session.run(None, {"images": images})
    assert ran_out_of_memory(raised.value)


def test_what_numpy_really_raises_is_known() -> None:
    with pytest.raises(MemoryError) as raised:
        np.zeros(2**50, np.uint8)
    assert ran_out_of_memory(raised.value)


def test_a_lowered_limit_holds_for_its_key_and_for_a_while() -> None:
    now_s = 1000.0
    lowered: Lowered[str] = Lowered(lambda: now_s)
    assert lowered.limit("vit", 8) == 8
    lowered.lower("vit", 4)
    lowered.lower("vit", 6)  # told late by another stream
    assert (lowered.limit("vit", 8), lowered.limit("swin", 8), lowered.limit("vit", 2)) == (4, 8, 2)
    now_s += LOWERED_S
    assert lowered.limit("vit", 8) == 8
