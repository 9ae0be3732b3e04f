"""What ModelOpt is asked for; the graphs that it makes are judged in ``test_to_tensorrt``."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export import to_fp8
from tests.service.test_runtimes import write_graph


def test_all_that_is_not_quantised_stays_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ModelOpt makes the rest fp16 or bf16 as a whole: norms, softmax and coordinates too."""
    asked: list[dict[str, Any]] = []

    class ModelOpt:
        @staticmethod
        def quantize(path: str, **wishes: Any) -> None:
            asked.append(wishes)
            onnx.save(onnx.load(path), wishes["output_path"])

    monkeypatch.setattr(to_fp8, "modelopt", lambda: ModelOpt)
    write_graph(tmp_path / "model.onnx")
    images = np.zeros((2, 2, 2, 3), np.uint8)
    model = to_fp8.quantize_to_fp8(tmp_path / "model.onnx", {"images": images}, tmp_path)
    assert (asked[0]["quantize_mode"], asked[0]["high_precision_dtype"]) == ("fp8", "fp32")
    assert [value.name for value in model.graph.inputs] == ["images"]
