"""The arithmetic at the entry and the exit of a graph."""

import pytest
import torch
from torch import Tensor, nn

from export.heads import Boxes, Entry, Explain, Serve

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Echo(nn.Module):
    """Hands on the first pixel as logits."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = images[:, :, 0, 0]
        return {"tokens": images, "logits": first, "embedding": first, "attention": images}

    def explain(self, images: Tensor, query: Tensor) -> dict[str, Tensor]:
        return {"attention": images, "rollout": query}


class Headless(Echo):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        named = super().forward(images)
        del named["logits"]
        return named


def every_pixel() -> Tensor:
    return torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)


def test_entry_is_the_reference_arithmetic_for_every_pixel_value() -> None:
    images = every_pixel()
    expected = (images.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    found = Entry(1 / 255, MEAN, STD)(images)
    assert found.shape == (1, 3, 16, 16)
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2).float(), atol=1e-6, rtol=0)


def test_entry_without_rescaling_and_normalising_hands_pixels_on() -> None:
    images = every_pixel()
    found = Entry(1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(images)
    assert torch.equal(found, images.permute(0, 3, 1, 2).float())


def test_entry_zeroes_what_lies_beyond_a_padded_picture_after_normalising() -> None:
    images = every_pixel().expand(2, -1, -1, -1)
    sizes = torch.tensor([[16, 3], [5, 16]], dtype=torch.int32)
    entry = Entry(1 / 255, MEAN, STD)
    whole, found = entry(images), entry(images, sizes)
    assert torch.equal(found[0, :, :, :3], whole[0, :, :, :3])
    assert torch.equal(found[1, :, :5], whole[1, :, :5])
    assert found[0, :, :, 3:].count_nonzero() == found[1, :, 5:].count_nonzero() == 0


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_scores_are_the_activation_of_the_logits(activation: str) -> None:
    entry = Entry(1 / 255, MEAN, STD)
    outputs = Serve(entry, Echo(), activation)(every_pixel())  # type: ignore[arg-type]
    assert list(outputs) == ["scores", "logits", "embedding", "attention"]
    logits = outputs["logits"]
    expected = logits.exp() / logits.exp().sum(-1, keepdim=True)
    if activation == "sigmoid":
        expected = 1 / (1 + (-logits).exp())
    torch.testing.assert_close(outputs["scores"], expected)


def test_a_network_without_a_head_has_no_scores() -> None:
    assert list(Serve(Entry(1 / 255, MEAN, STD), Headless())(every_pixel())) == [
        "embedding",
        "attention",
    ]


def test_explain_hands_the_query_to_the_network_and_keeps_the_maps() -> None:
    query = torch.tensor([7])
    outputs = Explain(Entry(1 / 255, MEAN, STD), Echo())(every_pixel(), query)
    assert list(outputs) == ["attention", "rollout"]
    assert outputs["rollout"] is query


class Looking(nn.Module):
    """Two queries of three classes, the last being "no object"; the second counts as best."""

    def explain(self, images: Tensor, sizes: Tensor, query: Tensor) -> dict[str, Tensor]:
        logits = torch.tensor([[[4.0, 0.0, 5.0], [0.0, 3.0, 0.0]]])
        boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.25], [0.25, 0.5, 0.5, 1.0]]])
        chosen = torch.where(query < 0, 1, query)
        maps = {"decoder.0": sizes, "masks": images}
        return maps | {"logits": logits, "boxes": boxes, "chosen": chosen}


@pytest.mark.parametrize(("query", "number"), [(-1, 1), (0, 0), (1, 1)])
def test_explain_says_which_object_it_explained(query: int, number: int) -> None:
    head = Explain(Entry(1 / 255, MEAN, STD), Looking())
    outputs = head(every_pixel(), torch.tensor([query]))
    assert list(outputs) == ["decoder.0", "explained", "explained_logits", "explained_box"]
    assert outputs["decoder.0"].tolist() == [[16, 16]]  # a picture without padding
    assert outputs["explained"].tolist() == [number]
    assert outputs["explained_logits"].tolist() == [[[4, 0, 5], [0, 3, 0]][number]]
    boxes = [[0.25, 0.375, 0.75, 0.625], [0, 0, 0.5, 1]]
    assert outputs["explained_box"].tolist() == [boxes[number]]
    padded = head(every_pixel(), torch.tensor([query]), sizes=torch.tensor([[3, 4]]))
    assert padded["decoder.0"].tolist() == [[3, 4]]


class Proposing(Looking):
    """Its queries come from the cells 40 and 7."""

    def explain(self, images: Tensor, sizes: Tensor, query: Tensor) -> dict[str, Tensor]:
        return super().explain(images, sizes, query) | {"cells": torch.tensor([[40, 7]])}


def test_a_query_with_a_cell_goes_by_it() -> None:
    outputs = Explain(Entry(1 / 255, MEAN, STD), Proposing())(every_pixel(), torch.tensor([-1]))
    assert outputs["explained"].tolist() == [7]
    assert outputs["explained_logits"].tolist() == [[0, 3, 0]]
    assert "cells" not in outputs
    rows = Boxes("sigmoid")(
        torch.tensor([[[4.0], [5.0]]]), torch.rand(1, 2, 4), torch.tensor([[40, 7]])
    )
    assert rows["queries"].tolist() == [[7, 40]]  # best first
