"""The ViT definition against formulas computed apart from it."""

import dataclasses

import numpy as np
import pytest
import torch

from models.layers import Attention
from models.vit import Block, ViT, ViTConfig

CONFIG = ViTConfig(
    canvas=(24, 40), patch_size=8, dim=24, depth=3, heads=3, mlp_dim=40, classes=5, registers=2
)
POOLS = ("class", "distilled", "mean", "class_and_mean")


def lively(config: ViTConfig = CONFIG) -> ViT:
    torch.set_num_threads(1)
    model = ViT(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def pictures(batch: int, config: ViTConfig = CONFIG) -> torch.Tensor:
    return torch.randn(batch, 3, *config.canvas, generator=torch.Generator().manual_seed(1))


def attention_matrices(model: ViT, images: torch.Tensor) -> np.ndarray:  # (L, B, h, N, N)
    """Softmax of the scaled products of q and k, computed in numpy from each block's input."""
    inputs: list[torch.Tensor] = []
    handles = [
        block.attn.qkv.register_forward_hook(lambda _, __, out: inputs.append(out.detach()))
        for block in model.blocks
        if isinstance(block, Block)
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    matrices = []
    for qkv in inputs:
        batch, tokens, width = qkv.shape
        heads, dim = model.config.heads, width // 3
        parts = qkv.double().numpy().reshape(batch, tokens, 3, heads, dim // heads)
        q, k = parts[:, :, 0].swapaxes(1, 2), parts[:, :, 1].swapaxes(1, 2)
        scores = q @ k.swapaxes(2, 3) / np.sqrt(dim // heads)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        matrices.append(weights / weights.sum(-1, keepdims=True))
    return np.stack(matrices)


def test_rollout_equals_the_product_of_the_mixed_matrices() -> None:
    model, images = lively(), pictures(3)
    query = torch.tensor([0, 5, 17])
    rollout = np.eye(3 * 5 + 3)[None]
    for matrix in attention_matrices(model, images):
        mixed = 0.5 * matrix.mean(axis=1) + 0.5 * np.eye(matrix.shape[-1])
        rollout = mixed @ rollout
    expected = np.stack([rollout[image, row, 3:] for image, row in enumerate(query.tolist())])
    with torch.no_grad():
        found = model.explain(images, query)["rollout"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_explained_attention_is_the_row_of_the_query_in_every_layer() -> None:
    model, images = lively(), pictures(2)
    query = torch.tensor([3, 11])
    matrices = attention_matrices(model, images)
    expected = np.stack([matrices[:, 0, :, 3, 3:], matrices[:, 1, :, 11, 3:]])
    with torch.no_grad():
        found = model.explain(images, query)["attention"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_first_row_is_the_first_row_of_the_whole_matrix() -> None:
    torch.manual_seed(0)
    attention = Attention(24, 3)
    x = torch.randn(4, 13, 24)
    with torch.no_grad():
        whole = attention.forward_with_weights(x)[1]
        torch.testing.assert_close(attention.first_row(x), whole[:, :, 0], rtol=1e-5, atol=1e-7)


def test_keeping_the_weights_does_not_change_the_output() -> None:
    torch.manual_seed(0)
    attention = Attention(24, 3)
    x = torch.randn(4, 13, 24)
    with torch.no_grad():
        assert torch.equal(attention(x), attention.forward_with_weights(x)[0])


@pytest.mark.parametrize("pool", POOLS)
def test_answer_does_not_depend_on_the_rest_of_the_batch(pool: str) -> None:
    config = dataclasses.replace(CONFIG, pool=pool)  # type: ignore[arg-type]
    model, images = lively(config), pictures(3, config)
    with torch.no_grad():
        together = model(images)
        for index in range(3):
            alone = model(images[index : index + 1])
            for name, tensor in together.items():
                torch.testing.assert_close(
                    alone[name][0], tensor[index], rtol=1e-5, atol=1e-5, msg=name
                )


def test_outputs_have_the_shapes_that_the_definition_states() -> None:
    for pool, prefix, width in zip(POOLS, (3, 4, 3, 3), (24, 24, 24, 48), strict=True):
        config = dataclasses.replace(CONFIG, pool=pool)  # type: ignore[arg-type]
        with torch.no_grad():
            shapes = {name: tuple(t.shape) for name, t in lively(config)(pictures(2)).items()}
        assert shapes == {
            "tokens": (2, prefix + 15, 24),
            "embedding": (2, width),
            "attention": (2, 3, 15),
            "logits": (2, 5),
        }


def test_network_without_classes_has_no_logits() -> None:
    config = dataclasses.replace(CONFIG, classes=0, pool="distilled")
    with torch.no_grad():
        assert "logits" not in lively(config)(pictures(1))


def test_distilled_logits_are_the_mean_of_both_heads() -> None:
    model = lively(dataclasses.replace(CONFIG, pool="distilled"))
    with torch.no_grad():
        found = model(pictures(2))
        heads = [head(found["tokens"][:, index]) for index, head in enumerate(model.heads)]
    torch.testing.assert_close(found["logits"], torch.stack(heads).mean(0), rtol=1e-5, atol=1e-6)


def test_registers_follow_the_class_token_and_carry_no_position() -> None:
    model = lively()
    seen: list[torch.Tensor] = []
    first = model.blocks[0]
    handle = first.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        model(pictures(1))
    handle.remove()
    assert model.registers is not None
    assert torch.equal(seen[0][:, 1:3], model.registers)
    assert torch.equal(seen[0][:, 0], (model.class_tokens + model.positions[:, :1])[:, 0])


def test_canvas_that_is_no_multiple_of_the_patch_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"canvas 30x45 is not a multiple .* 8; .* is 24x40"):
        dataclasses.replace(CONFIG, canvas=(30, 45))


def test_width_that_does_not_divide_into_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="width 24 does not divide into 5 heads"):
        dataclasses.replace(CONFIG, heads=5)
