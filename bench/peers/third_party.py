"""The graph that a user of transformers gets by ``torch.onnx.export``: fp32, normalised outside.

python -m bench.peers.third_party CHECKPOINT FILE
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import ViTForImageClassification

OPSET = 20
MOST = 256


class Logits(nn.Module):
    """Tensors in and out, as an exporter wants it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, K)
        logits: Tensor = self.network(pixel_values=pixel_values).logits
        return logits


def main() -> None:
    """Export the classifier in a checkpoint's folder."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.third_party")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path)
    asked = parser.parse_args()
    network = Logits(ViTForImageClassification.from_pretrained(asked.checkpoint)).eval()
    asked.file.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, 224, 224),),
        asked.file,
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=MOST)}},
        external_data=False,
        opset_version=OPSET,
    )


if __name__ == "__main__":
    main()
