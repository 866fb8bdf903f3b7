"""The one place that knows how each kind of model is exported."""

from detectron2.modeling import GeneralizedRCNN
from torch import nn

from ..modeling.dense_detector import DenseDetector
from ..modeling.dino import DINO
from ..modeling.mask2former import Mask2Former
from ..modeling.semantic_segmentor import SemanticSegmentor
from .detectors import TraceableDense, TraceableDINO
from .images import Images, Size
from .rcnn import TraceableRCNN
from .segmenters import TraceableMask2Former, TraceableSegmentor

# A model's class -> what exports of it.
KINDS: dict[type[nn.Module], type[nn.Module]] = {
    GeneralizedRCNN: TraceableRCNN,
    DenseDetector: TraceableDense,
    DINO: TraceableDINO,
    Mask2Former: TraceableMask2Former,
    SemanticSegmentor: TraceableSegmentor,
}


def traceable(model: nn.Module, fit: Size | None = None) -> nn.Module:
    """A model's inference as a module of tensors, for `torch.export.export` and what stands on it.

    Its input is a batch of images of one size, (B, 3, H, W), pixels from 0 to 255 in the model's
    `input_format`, resized as the config's test mapper does and padded at the right and at the bottom to
    multiples of the backbone's `size_divisibility`. Its output, for detectors, is a named tuple:
    `boxes` (B, N, 4) as (x1, y1, x2, y2) in pixels of that input, `scores` (B, N), best first,
    `classes` (B, N), and of models with masks `masks` (B, N, S, S), each a grid over its box. N is the
    model's limit of detections; places without one have class -1 and zeros.

    At a free size, sides are multiples of the backbone's `size_divisibility`, and long enough that the
    coarsest map has more than one cell along each: to torch.export one is a shape of its own.

    Args:
        model: in evaluation mode.
        fit: (H, W) that images of any size are resized to fit into; boxes, masks and maps are in the
            images' own pixels all the same. None: images come resized.

    Returns:
        A module that shares the model's parameters.

    Raises:
        ValueError: there is no such module for this kind of model, or the model is in training.
    """
    if model.training:
        raise ValueError("a model is exported in evaluation mode: call model.eval() first")
    for kind, exported in KINDS.items():
        if isinstance(model, kind):
            return exported(model, Images(model, fit)).eval()
    raise ValueError(
        f"{type(model).__name__} cannot be exported; "
        f"{', '.join(kind.__name__ for kind in KINDS)} can"
    )
