"""Networks with random weights, of which only the cost is true."""

from pathlib import Path
from typing import Any

import pytest

from export.random_weights import with_engine, write_bundle
from service.bundle import Bundle
from service.engines import Machine
from service.errors import BadBundle
from service.geometry import Size
from service.worker.runtimes.choose import Choice, open_graph
from service.worker.runtimes.tensorrt.building import Plan
from service.worker.runtimes.tensorrt.proving import Opened, Workshop


def tools(bundle: Bundle, products: dict[str, float]) -> Workshop:
    """Nothing is built, and the CPU runs it."""

    def opened(plan: bytes, ranges: Any, precision: str) -> Opened:
        runtime: Any = open_graph(bundle.folder / "model.onnx", Choice("onnxruntime", "fp32"))
        runtime.name, runtime.precision = "tensorrt", "bf16"
        return Opened(runtime, {}, lambda batch: batch / 1e3)

    here = Machine(
        library="tensorrt", version="11.4", gpu="any", compute_capability="9.0", driver_major=580
    )
    return Workshop(here, lambda *_: Plan(b"a plan", products), opened)


@pytest.mark.slow
def test_a_network_of_full_size_is_a_bundle_with_an_engine_in_its_types(tmp_path: Path) -> None:
    canvas = Size(height=224, width=224)
    bundle = write_bundle("deit-ti16-224", canvas, tmp_path)
    assert bundle.manifest.tasks == ["classify"]
    assert [one.file for one in bundle.manifest.engine_graphs(canvas, "bf16")] == [
        "engine-bf16.onnx"
    ]
    with pytest.raises(BadBundle, match="0% of its products are in bf16"):
        with_engine(bundle, [1, 2], tools(bundle, {"fp32": 1.0}))
    found = with_engine(bundle, [1, 2], tools(bundle, {"bf16": 1.0}))
    found.verify()
    assert found.manifest.engines[0].seconds == {"1": 0.001, "2": 0.002}
    assert round(found.manifest.macs / 1e9, 2) == 1.25
