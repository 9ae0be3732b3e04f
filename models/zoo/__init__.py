"""The published networks: dimensions, where their weights are, and what was published of them."""

from torch import nn

from models.deformable_detr import DeformableDetr, DeformableDetrConfig
from models.detr import Detr, DetrConfig
from models.mask2former import Mask2Former, Mask2FormerConfig
from models.maskformer import MaskFormer, MaskFormerConfig
from models.swin import SwinClassifier, SwinConfig
from models.swinv2 import SwinV2Classifier, SwinV2Config
from models.vit import ViT, ViTConfig
from models.zoo import deformable_detr, detr, mask2former, maskformer, swin, vit
from models.zoo.variant import Variant

__all__ = ["ZOO", "Variant", "build"]

ZOO = {
    variant.name: variant
    for family in (vit, detr, deformable_detr, maskformer, mask2former, swin)
    for variant in family.VARIANTS
}

_NETWORKS: dict[type, type[nn.Module]] = {
    ViTConfig: ViT,
    SwinConfig: SwinClassifier,
    SwinV2Config: SwinV2Classifier,
    DetrConfig: Detr,
    DeformableDetrConfig: DeformableDetr,
    MaskFormerConfig: MaskFormer,
    Mask2FormerConfig: Mask2Former,
}


def build(name: str) -> nn.Module:
    """The network of a variant without its weights; on the default device, so under
    ``torch.device("meta")`` it takes no memory.
    """
    if name not in ZOO:
        raise ValueError(f"no variant is called {name!r}; there are {', '.join(ZOO)}")
    config = ZOO[name].config
    return _NETWORKS[type(config)](config)
