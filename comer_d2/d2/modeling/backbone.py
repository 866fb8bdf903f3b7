"""ViT-CoMer as a Detectron2 backbone."""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.modeling import Backbone
from torch import Tensor, nn

from ...network import ViTCoMerNet
from ...network.vit_comer import LARGEST_STRIDE, STRIDES
from ...weights import load_weights
from .norm import norm_layer

logger = logging.getLogger(__name__)


def names_network_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Spells out ``**network`` in a constructor's signature.

    For ``help()``, and for train_net.py, which accepts an override of any argument that is named.
    """
    own = inspect.signature(init).parameters
    network = inspect.signature(ViTCoMerNet).parameters
    parameters = [p for p in own.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters += [p for name, p in network.items() if name != "norm_layer"]
    init.__signature__ = inspect.Signature(parameters, return_annotation=None)
    return init


class ViTCoMer(ViTCoMerNet, Backbone):
    """ViT-CoMer with what Detectron2 asks of a backbone.

    Takes the place of any four-level backbone: under Detectron2's ``FPN``, or directly under a head
    that reads ``res2`` to ``res5``. Parameters and ``state_dict`` are those of
    :class:`~comer_d2.network.ViTCoMerNet`.

    Image sizes: Detectron2's models pad a batch to ``padding_constraints`` before they call the
    backbone, and ``FPN``, whose levels are doubled and summed, relies on it. Called on its own, the
    backbone takes any size: it pads inside and crops every output to ``ceil(side / stride)``.

    Args:
        out_features: the outputs wanted, of ``"res2"``, ``"res3"``, ``"res4"``, ``"res5"``, in any
            order. Parameters that only serve the others stay in the ``state_dict`` but are frozen:
            DistributedDataParallel refuses parameters that never get a gradient.
        norm: normalisation of the CNN branch, MRFP and the outputs: a name that Detectron2's
            ``get_norm`` knows, or channels -> module. ``"SyncBN"``, as released, is synchronised
            wherever there is more than one process: see :func:`~comer_d2.d2.modeling.norm.norm_layer`.
        square_pad: if positive, Detectron2 is asked to pad images to squares of this side, in
            pixels. Under an ``FPN`` it is the FPN's own ``square_pad`` that counts.
        pretrained: weights to start from, as :func:`comer_d2.weights.load_weights` takes them: a
            ``timm:`` id or a file. ``train.init_checkpoint`` does the same once, where training
            starts; this loads whenever the model is built.
        pretrained_family: of a pretrained ViT, where its names do not tell.
        **network: the arguments of :class:`~comer_d2.network.ViTCoMerNet`, but for ``norm_layer``.

    Raises:
        ValueError: for unknown features or norms, for arguments that do not fit together, and for
            pretrained weights that do not fit.
    """

    @names_network_arguments
    def __init__(
        self,
        *,
        out_features: Sequence[str] = tuple(STRIDES),
        norm: str | Callable[[int], nn.Module] = "SyncBN",
        square_pad: int = 0,
        pretrained: str | None = None,
        pretrained_family: str | None = None,
        **network: Any,
    ) -> None:
        unknown = [name for name in out_features if name not in STRIDES]
        if unknown or not out_features:
            raise ValueError(
                f"out_features must be some of {list(STRIDES)}, got {list(out_features)}"
            )
        super().__init__(norm_layer=norm_layer(norm), **network)
        self.square_pad = square_pad
        # The names that Backbone.output_shape reads.
        self._out_features = list(out_features)
        self._out_feature_strides = {name: STRIDES[name] for name in out_features}
        self._out_feature_channels = dict.fromkeys(out_features, self.embed_dim)
        self._freeze_unused()
        if pretrained:
            logger.info("%s", load_weights(self, pretrained, family=pretrained_family))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image -> the feature maps named in ``out_features``.

        Args:
            image: (B, in_chans, h, w), normalised; any size.

        Returns:
            Name -> (B, embed_dim, ceil(h/s), ceil(w/s)), s the stride of that name.
        """
        maps = super().forward(image)
        return {name: maps[name] for name in self._out_features}

    @property
    def size_divisibility(self) -> int:
        """Sides, in pixels, must divide by this for every level to be half of the one before."""
        return LARGEST_STRIDE

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What Detectron2's models pad a batch of images to."""
        return {"size_divisibility": self.size_divisibility, "square_size": self.square_pad}

    def _freeze_unused(self) -> None:
        for name, out_norm in zip(STRIDES, self.out_norms, strict=True):
            if name not in self._out_features:
                out_norm.requires_grad_(False)
        if "res2" not in self._out_features:  # the one level that the tokens do not hold
            self.upsample.requires_grad_(False)
            self.pyramid.proj[0].requires_grad_(False)
