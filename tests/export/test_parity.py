"""The proof: what is measured, what passes, and that a wrong graph does not."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from export import proof
from export.heads import Entry, Explain, Serve
from export.pictures import Files, Pictures, collect, generate
from export.progress import Silent
from export.proof import Subject, pictures_run, prove
from models.checkpoints import load_model, open_checkpoint
from service import parity as figures
from service.bundle import Bundle, Graph, Parity
from service.errors import StartError
from service.geometry import Geometry, Resize, Size
from service.images import ImageLimits, decode
from service.parity import measure, objections, picture_inputs, run_in_batches
from service.worker.runtimes.base import Arrays, Signature
from service.worker.runtimes.choose import Choice, supports

LOGITS = np.array([[2.0, 1.0, -3.0], [0.0, 0.5, 0.4]], dtype=np.float32)
GRAPH = Graph(
    file="model.onnx",
    kind="serve",
    canvas=Size(height=8, width=8),
    precision="fp32",
    inputs=[],
    outputs=[],
)
FINE = Parity(
    runtime="openvino",
    precision="fp32",
    canvas=GRAPH.canvas,
    images=2,
    max_error=1e-6,
    rms_error=1e-7,
    cosine=1.0,
    top1_agreement=1.0,
    batch_error=0.0,
    embedding_error=1e-6,
    attention_error=1e-6,
    explain_error=1e-6,
)


def outputs(logits: Any) -> Arrays:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    return {"scores": scores, "logits": logits, "embedding": logits * 10}


class Fixed:
    """Answers picture i with row i, plus ``drift`` for every neighbour in the batch."""

    name = "openvino"
    precision = "bf16"
    device = "cpu"
    streams = threads = 1

    def __init__(self, logits: Any, drift: float = 0.0) -> None:
        self.inputs: dict[str, Signature] = {}
        self.outputs: dict[str, Signature] = {}
        self.logits = logits
        self.drift = drift
        self.batches: list[int] = []

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        rows = self.logits[inputs["images"]]
        self.batches.append(len(rows))
        rows[:, 0] += self.drift * (len(rows) - 1)
        return outputs(rows)


INPUTS: Arrays = {"images": np.arange(2)}


def test_figures_of_an_exact_runtime_are_perfect() -> None:
    found = measure(GRAPH, Fixed(LOGITS), outputs(LOGITS), INPUTS)
    assert (found.max_error, found.batch_error, found.embedding_error) == (0, 0, 0)
    assert found.top1_agreement == 1
    assert found.cosine == pytest.approx(1)
    assert found.images == 2


def test_errors_are_those_of_scores_and_relative_for_embeddings() -> None:
    other = LOGITS.copy()
    other[0, 0] += 0.1
    expected = outputs(LOGITS)
    found = measure(GRAPH, Fixed(other), expected, INPUTS)
    errors = np.abs(outputs(other)["scores"] - expected["scores"])
    assert found.max_error == pytest.approx(errors.max())
    assert found.rms_error == pytest.approx(np.sqrt((errors**2).mean()))
    assert found.embedding_error == pytest.approx(0.1 / 3.0)  # the largest component is -30
    assert 0.99 < found.cosine < 1


def test_a_constant_added_to_all_logits_does_not_lower_the_cosine() -> None:
    found = measure(GRAPH, Fixed(LOGITS + 100), outputs(LOGITS), INPUTS)
    assert found.cosine == pytest.approx(1)


def test_a_changed_class_counts_only_beyond_the_error() -> None:
    near = LOGITS.copy()
    near[1] = [0.0, 0.4, 0.5]  # margin 0.1, about the error
    assert measure(GRAPH, Fixed(near), outputs(LOGITS), INPUTS).top1_agreement == 1
    many = np.tile(LOGITS[:1], (50, 1))
    far = many.copy()
    far[7] = [1.0, 2.0, -3.0]  # margin 1, many times the rms error
    wide: Arrays = {"images": np.arange(50)}
    assert measure(GRAPH, Fixed(far), outputs(many), wide).top1_agreement == 0.98


def test_what_neighbours_change_is_measured() -> None:
    found = measure(GRAPH, Fixed(LOGITS, drift=0.01), outputs(LOGITS), INPUTS)
    assert found.max_error == 0
    assert found.batch_error is not None
    assert found.batch_error > 1e-3
    assert "alone and batched" in objections(found)[-1]


class Neighbours:
    """Answers a picture alone with ``alone``, and with ``beside`` in a batch."""

    name = "openvino"
    device = "cpu"
    streams = threads = 1

    def __init__(self, precision: str, alone: Arrays, beside: Arrays) -> None:
        self.inputs: dict[str, Signature] = {}
        self.outputs: dict[str, Signature] = {}
        self.precision = precision
        self.alone, self.beside = alone, beside

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        places = inputs["images"]
        answers = self.alone if len(places) == 1 else self.beside
        return {name: array[places] for name, array in answers.items()}


def detected() -> Arrays:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 0.4, (2, 12, 2))
    return {
        "scores": np.tile(np.linspace(0.9, 0.2, 12, dtype=np.float32), (2, 1)),
        "classes": np.stack([np.arange(12), np.arange(12)[::-1]]).astype(np.int32),
        "boxes": np.concatenate([corners, corners + 0.3], axis=2).astype(np.float32),
    }


def segmented() -> Arrays:
    random = np.random.default_rng(0)
    return {
        "logits": random.standard_normal((2, 5, 4)).astype(np.float32),
        "masks": random.standard_normal((2, 5, 6, 6)).astype(np.float32),
        "panoptic_map": random.integers(0, 6, (2, 6, 6), dtype=np.int32),
        "panoptic_classes": np.tile(np.arange(5, dtype=np.int32), (2, 1)),
    }


def classified() -> Arrays:
    attention = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (2, 1))
    return outputs(LOGITS) | {"attention": attention}


@pytest.mark.parametrize(
    ("answers", "name", "precisions"),
    [
        (detected(), "boxes", ("fp32", "bf16")),
        (detected(), "classes", ("fp32", "bf16")),
        (segmented(), "masks", ("fp32", "bf16")),
        (segmented(), "panoptic_map", ("fp32", "bf16")),
        (segmented(), "panoptic_classes", ("fp32", "bf16")),
        (classified(), "embedding", ("fp32",)),
        (classified(), "attention", ("fp32",)),
    ],
)
def test_every_output_is_judged_in_batches_too(
    answers: Arrays, name: str, precisions: tuple[str, ...]
) -> None:
    """Scores stay right; everybody in a batch gets the first picture's other output, or none."""
    for precision in precisions:
        right = measure(GRAPH, Neighbours(precision, answers, answers), answers, INPUTS)
        assert objections(right) == []
        for wrong in (np.repeat(answers[name][:1], 2, axis=0), np.zeros_like(answers[name])):
            runtime = Neighbours(precision, answers, answers | {name: wrong})
            if not np.array_equal(wrong, answers[name]):
                assert objections(measure(GRAPH, runtime, answers, INPUTS)), precision


def test_batches_are_always_full() -> None:
    runtime = Fixed(np.tile(LOGITS[:1], (11, 1)))
    found = run_in_batches(runtime, {"images": np.arange(11)}, batch=8)
    assert runtime.batches == [8, 8]
    assert len(found["scores"]) == 11


def test_not_a_number_is_an_objection_in_every_precision() -> None:
    broken = measure(GRAPH, Fixed(LOGITS * np.nan), outputs(LOGITS), INPUTS)
    assert len(objections(broken)) == 3
    assert len(objections(broken.model_copy(update={"precision": "fp32"}))) == 5
    assert broken.cosine == -1


@pytest.mark.parametrize(
    "field", ["max_error", "batch_error", "embedding_error", "attention_error", "explain_error"]
)
def test_every_error_of_fp32_has_the_limit_1e_5(field: str) -> None:
    assert objections(FINE) == []
    assert objections(FINE.model_copy(update={field: 1e-5})) == []
    (objection,) = objections(FINE.model_copy(update={field: 1.1e-5}))
    assert "1.1e-05 (limit 1e-05)" in objection


def test_bf16_is_judged_by_cosine_and_class() -> None:
    bf16 = FINE.model_copy(update={"precision": "bf16", "max_error": 0.01, "cosine": 0.9991})
    assert objections(bf16) == []
    low = objections(bf16.model_copy(update={"cosine": 0.9989}))
    assert low == ["smallest cosine is 0.99890 (limit 0.999)"]
    other = objections(bf16.model_copy(update={"top1_agreement": 0.9}))
    assert other == ["top-1 agreement beyond ties is 0.900 (limit 1)"]


def case_of(
    bundle: Bundle, source: Path, damage: float = 0.0, explain: float = 0.0
) -> tuple[Path, list[Subject], Geometry, list[Image.Image], int]:
    """The bundle's graphs at the first canvas beside modules whose weights were changed since."""
    found = []
    geometry = bundle.manifest.geometry
    entry = Entry(1 / 255, (0.5,) * 3, (0.5,) * 3)
    for graph in bundle.manifest.graphs:
        if graph.canvas != geometry.nominal:
            continue
        model = load_model(open_checkpoint(str(source)), (64, 64)).model
        with torch.no_grad():
            model.get_parameter("blocks.0.norm1.weight")[3] += (
                damage if graph.kind == "serve" else explain
            )
        head = Serve(entry, model) if graph.kind == "serve" else Explain(entry, model)
        found.append(Subject(graph, head))
    return bundle.folder, found, geometry, generate(), bundle.manifest.macs


def test_a_graph_with_one_wrong_weight_is_refused(
    bundles: dict[str, Bundle], references: dict[str, Any]
) -> None:
    case = case_of(bundles["vit"], references["vit"].folder, damage=0.05)
    with pytest.raises(StartError, match=r"does not equal the checkpoint: at 64x64 the .* error"):
        prove(*case, ["fp32"], Silent())


def test_a_wrong_explain_graph_is_refused(
    bundles: dict[str, Bundle], references: dict[str, Any]
) -> None:
    case = case_of(bundles["vit"], references["vit"].folder, explain=0.05)
    with pytest.raises(StartError, match=r"largest error of the explain graph is .* \(limit 1e-05"):
        prove(*case, ["fp32"], Silent())


def test_bf16_that_fails_is_left_out_with_its_figures_unless_asked_for(
    bundles: dict[str, Bundle],
    references: dict[str, Any],
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(bundles["vit"], references["vit"].folder)
    progress = type(recorder)()
    if supports(Choice("openvino", "bf16")) is not None:
        pytest.skip("needs a CPU with bf16")
    monkeypatch.setattr(figures, "COSINE_LIMIT", 1.1)
    found = prove(*case, None, progress)
    assert {(p.runtime, p.precision) for p in found} == {
        ("openvino", "fp32"),
        ("onnxruntime", "fp32"),
    }
    (notice,) = progress.notices
    assert "openvino bf16 on cpu is not in the bundle: at 64x64 the smallest cosine is" in notice
    assert "measured: max error" in notice
    with pytest.raises(StartError, match=r"openvino bf16 .* \(limit 1\.1\)"):
        prove(*case, ["bf16"], progress)


def test_bf16_that_the_machine_lacks_is_left_out_unless_asked_for(
    bundles: dict[str, Bundle],
    references: dict[str, Any],
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(bundles["vit"], references["vit"].folder)
    progress = type(recorder)()
    lacking = "this machine's cpu offers only fp32 there"
    monkeypatch.setattr(proof, "supports", lambda c: lacking if c.precision == "bf16" else None)
    assert {parity.precision for parity in prove(*case, None, progress)} == {"fp32"}
    assert progress.notices == [f"openvino bf16 on cpu is not in the bundle: {lacking}"]
    with pytest.raises(StartError, match="bf16 was asked for and cannot be proven: this machine"):
        prove(*case, ["bf16"], progress)


def test_an_export_without_any_runtime_is_refused(
    bundles: dict[str, Bundle], references: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(bundles["vit"], references["vit"].folder)
    monkeypatch.setattr(proof, "supports", lambda choice: f"{choice.runtime} is not installed")
    with pytest.raises(StartError, match="nothing can be proven; install them with"):
        prove(*case, None, Silent())


def test_pictures_are_those_given_and_then_the_scenes(tmp_path: Path) -> None:
    scenes, given, empty = tmp_path / "scenes", tmp_path / "given", tmp_path / "empty"
    for folder in (scenes, given, empty):
        folder.mkdir()
    first, second = generate(((40, 60), (50, 30)))
    first.save(scenes / "a.jpg")
    second.save(given / "b.png")
    (given / "notes.txt").write_text("no picture")
    found = collect(given, scenes)
    assert [image.size for image in found.images] == [(30, 50), (60, 40)]
    assert found.description == "1 given pictures, 1 sample scenes"
    assert collect(None, empty).description == "6 generated pictures"
    with pytest.raises(StartError, match="holds no pictures"):
        collect(empty, scenes)


def test_of_a_large_network_the_pictures_given_are_run_and_only_those_are_told() -> None:
    wide, tall = Size(height=64, width=96), Size(height=96, width=64)
    resize = Resize(mode="squash", height=64, width=96)
    geometry = Geometry(nominal=wide, resize=resize, placement="stretch")
    pictures = Pictures(
        generate(((64, 96), (96, 64), *[(64, 96)] * 6)),
        ["given pictures"] * 4 + ["sample scenes"] * 4,
    )
    run = pictures_run(pictures, geometry, [wide, tall], macs=proof.PROOF_MACS)
    assert run.description == "4 given pictures, 1 sample scenes"  # the fifth fills up the wide
    for canvas in (wide, tall):
        graph = GRAPH.model_copy(update={"canvas": canvas})
        chosen, among_all = (
            picture_inputs(graph, geometry, [wide, tall], shown.images, proof.FEWEST_PICTURES)
            for shown in (run, pictures)
        )
        assert np.array_equal(chosen["images"], among_all["images"])
    everything = pictures_run(pictures, geometry, [wide, tall], macs=1)
    assert everything.description == "4 given pictures, 4 sample scenes"


def test_only_pictures_that_are_run_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def recorded(data: bytes, limits: ImageLimits) -> Image.Image:
        decoded.append(data)
        return decode(data, limits)

    monkeypatch.setattr("export.pictures.decode", recorded)
    for number, picture in enumerate(generate(((64, 96), (96, 64), (64, 96), (64, 96)))):
        picture.save(tmp_path / f"{number}.png")
    shown = Files(sorted(tmp_path.iterdir()))
    wide, tall = Size(height=64, width=96), Size(height=96, width=64)
    resize = Resize(mode="squash", height=64, width=96)
    geometry = Geometry(nominal=wide, resize=resize, placement="stretch")
    graph = GRAPH.model_copy(update={"canvas": tall})
    picture_inputs(graph, geometry, [wide, tall], shown, 2, shown.sizes)
    assert decoded == [(tmp_path / f"{number}.png").read_bytes() for number in (1, 0)]


def test_generated_pictures_are_the_same_every_time_and_not_flat() -> None:
    once, again = generate(((64, 48),)), generate(((64, 48),))
    assert once[0].tobytes() == again[0].tobytes()
    assert np.asarray(once[0]).std(axis=(0, 1)).min() > 20
