"""EoMT as what stands for backbone and head in a Detectron2 model."""

from detectron2.modeling import Backbone
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from ...heads.eomt import EoMT
from ...network.vit import PATCH_SIZE, ViT


class EoMTBackbone(EoMT, Backbone):
    """EoMT with what Detectron2 asks of a backbone; its outputs are the predictions already.

    Under this name, so that layer-wise learning rates find the ViT's blocks below ``backbone``. The
    share of the training that masked attention is annealed by is Detectron2's iteration over
    ``max_iter``, so that a resumed run goes on where it was.

    Args:
        vit: as in :class:`~comer_d2.heads.eomt.EoMT`; so are the next three.
        num_classes: classes K, without the no-object class.
        num_queries: queries Q.
        num_blocks: blocks that the queries go through.
        max_iter: iterations of the training.
        square_pad: side in pixels that images are padded to at least; 0 for a multiple of 16.
    """

    def __init__(
        self,
        vit: ViT,
        *,
        num_classes: int,
        num_queries: int = 200,
        num_blocks: int = 4,
        max_iter: int,
        square_pad: int = 0,
    ) -> None:
        super().__init__(
            vit, num_classes=num_classes, num_queries=num_queries, num_blocks=num_blocks
        )
        self.max_iter = max_iter
        self.square_pad = square_pad

    def forward(self, image: Tensor) -> dict[str, object]:
        """As :class:`~comer_d2.heads.eomt.EoMT`; in a training loop at its progress."""
        if self.training and has_event_storage():
            self.progress = get_event_storage().iter / self.max_iter
        return super().forward(image)

    @property
    def size_divisibility(self) -> int:
        """Sides, in pixels, must divide by this."""
        return PATCH_SIZE

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What Detectron2's models pad a batch of images to."""
        return {"size_divisibility": PATCH_SIZE, "square_size": self.square_pad}
