"""Networks of tests, from one list of arguments for a ViT and what is around it."""

import inspect
from collections.abc import Mapping
from typing import Any

from comer_d2.heads.mask2former import Mask2FormerHead
from comer_d2.heads.mask_decoder import MaskedTransformerDecoder
from comer_d2.heads.pixel_decoder import MSDeformAttnPixelDecoder
from comer_d2.network import ViT, ViTCoMerNet
from comer_d2.weights import official_arguments

OF_VIT = set(inspect.signature(ViT).parameters)
# A block in windows and a global one, and what is around them: one part of each other kind.
TINY_VIT: dict[str, Any] = {
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "window_size": 3,
    "window_block_indexes": (0,),
    "pretrain_img_size": 64,
}
TINY: dict[str, Any] = {
    **TINY_VIT,
    "stem_width": 8,
    "interaction_indexes": ((0, 1),),
    "deform_num_heads": 3,
    "num_extra_cti": 0,
    "norm": "BN",
    "gate_init": 0.5,
}
# Four interactions, for the names of the parameters.
NAMED: dict[str, Any] = {
    "embed_dim": 12,
    "depth": 4,
    "num_heads": 3,
    "window_block_indexes": (),
    "pretrain_img_size": 32,
    "stem_width": 4,
    "interaction_indexes": [(i, i) for i in range(4)],
    "deform_num_heads": 3,
    "num_extra_cti": 1,
}


def official_network(config: Mapping[str, Any]) -> ViTCoMerNet:
    """The network of a config of the authors."""
    arguments = official_arguments(config)
    return ViTCoMerNet(ViT(**arguments.pop("vit")), **arguments)


def make_network(cls: type[ViTCoMerNet] = ViTCoMerNet, **arguments: Any) -> ViTCoMerNet:
    """A ViT-CoMer; arguments that :class:`ViT` has are its ViT's."""
    vit = {name: value for name, value in arguments.items() if name in OF_VIT}
    rest = {name: value for name, value in arguments.items() if name not in OF_VIT}
    return cls(ViT(**vit), **rest)


def mask2former_head(hidden_dim: int = 32) -> Mask2FormerHead:
    """The head of tests/data/m2f_head_tiny, if its queries have 32 channels."""
    return Mask2FormerHead(
        MSDeformAttnPixelDecoder(
            in_channels=[24] * 4, conv_dim=32, mask_dim=32, num_heads=4, num_layers=2, ffn_dim=64
        ),
        MaskedTransformerDecoder(
            num_classes=5,
            in_channels=32,
            hidden_dim=hidden_dim,
            mask_dim=32,
            num_queries=8,
            num_heads=4,
            num_layers=3,
            ffn_dim=64,
        ),
    )
