"""From a checkpoint that transformers wrote to an answer over HTTP: the same numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from service.bundle import Bundle
from tests.conftest import Server, running_server

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def server(bundles: dict[str, Bundle]) -> Iterator[Server]:
    repository = bundles["vit"].folder.parent.parent
    with running_server("--repository", str(repository), "--precision", "fp32") as server:
        yield server


@pytest.fixture(scope="module")
def photo(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square part of a photograph: the ViT bundle's wider canvas is for wider pictures."""
    path = tmp_path_factory.mktemp("photo") / "square.png"
    with Image.open(shared_data / "coco_photos" / "000000000071.jpg") as image:
        image.convert("RGB").crop((100, 0, 500, 400)).save(path)
    return path


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_classes_have_the_probabilities_of_transformers(
    server: Server, bundles: dict[str, Bundle], references: dict[str, Any], photo: Path, name: str
) -> None:
    with Image.open(photo) as image:
        logits = torch.from_numpy(references[name].run(image)["logits"][0])
    expected = {f"class {i}": float(p) for i, p in enumerate(logits.softmax(-1))}
    query = {"model": bundles[name].manifest.name, "top_k": "5"}
    url = server.url + "/v1/classify"
    answer = httpx.post(url, params=query, content=photo.read_bytes()).json()
    found = {p["label"]: p["score"] for p in answer["predictions"]}
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert list(found) == sorted(expected, key=lambda label: -expected[label])


def test_embeddings_have_the_numbers_of_transformers(
    server: Server, references: dict[str, Any], photo: Path
) -> None:
    with Image.open(photo) as image:
        expected = references["dinov2"].run(image)["embedding"][0]
    url = server.url + "/v1/embed?model=features"
    answer = httpx.post(url, content=photo.read_bytes()).json()
    np.testing.assert_allclose(answer["embedding"], expected, atol=TOLERANCE)


@pytest.mark.parametrize(("layer", "head"), [(0, 2), (1, 0)])
def test_attention_has_the_numbers_of_transformers(
    server: Server,
    bundles: dict[str, Bundle],
    references: dict[str, Any],
    photo: Path,
    layer: int,
    head: int,
) -> None:
    with Image.open(photo) as image:
        weights = references["deit"].run(image)["attention"][0, layer, head, 0, 2:]
    query = {"model": bundles["deit"].manifest.name, "layer": str(layer), "head": str(head)}
    url = server.url + "/v1/attention"
    answer = httpx.post(url, params=query, content=photo.read_bytes()).json()
    found = np.array(answer["maps"][0]["values"])
    np.testing.assert_allclose(found, weights.reshape(found.shape), atol=TOLERANCE)
