"""A DETR-R50 checkpoint of random weights, written by transformers: no accuracy, true cost.

``python -m bench.random_detr FOLDER`` writes it, ``saccade export FOLDER`` makes a bundle of it.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

PREPROCESSOR = {
    "image_processor_type": "DetrImageProcessor",
    "size": {"shortest_edge": 800, "longest_edge": 1333},
}


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m bench.random_detr", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    backbone = ResNetConfig(out_features=["stage4"])
    config = DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, num_labels=91
    )
    DetrForObjectDetection(config).eval().save_pretrained(asked.folder)
    text = json.dumps(PREPROCESSOR, indent=2) + "\n"
    (asked.folder / "preprocessor_config.json").write_text(text)


if __name__ == "__main__":
    main()
