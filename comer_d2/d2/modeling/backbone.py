"""ViT-CoMer, and the plain ViT inside it, as Detectron2 backbones."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from ...network import ViT, ViTCoMerNet
from ...network.trunk import STRIDES
from ...network.vit import PATCH_SIZE
from .norm import norm_layer


class ViTCoMer(ViTCoMerNet, Backbone):
    """ViT-CoMer with what Detectron2 asks of a backbone.

    Takes the place of any four-level backbone: under Detectron2's ``FPN``, or directly under a head
    that reads ``res2`` to ``res5``. Arguments, parameters and ``state_dict`` are those of
    :class:`~comer_d2.network.ViTCoMerNet`; ``norm`` may be any that Detectron2's ``get_norm`` knows.

    Image sizes: Detectron2's models pad a batch to ``padding_constraints`` before they call the
    backbone, and ``FPN``, whose levels are doubled and summed, relies on it (under an ``FPN`` it is
    the FPN's own ``square_pad`` that counts). Called on its own, the backbone takes any size: it
    pads inside and crops every output to ``ceil(side / stride)``.
    """

    norm_layer = staticmethod(norm_layer)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the outputs, by name."""
        return {
            name: ShapeSpec(channels=self.embed_dim, stride=STRIDES[name])
            for name in self.out_features
        }


class PlainViT(ViT, Backbone):
    """The ViT alone, for Detectron2's ``SimpleFeaturePyramid``: the baseline.

    Arguments, parameters and ``state_dict`` are those of :class:`~comer_d2.network.ViT`.
    """

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, C, h, w), sides divisible by 16 -> ``"last_feat"``, (B, D, h/16, w/16)."""
        return {"last_feat": super().forward(image)}

    @property
    def size_divisibility(self) -> int:
        """Sides, in pixels, must divide by this."""
        return PATCH_SIZE

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the one output."""
        return {"last_feat": ShapeSpec(channels=self.embed_dim, stride=PATCH_SIZE)}
