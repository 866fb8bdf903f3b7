"""ViT-CoMer for Detectron2.

``comer_d2.ViTCoMer`` is the network as a Detectron2 ``Backbone``. Where Detectron2 is not
installed it is :class:`comer_d2.network.ViTCoMerNet`: the same arguments, ``state_dict`` and
outputs, without ``Backbone``'s bookkeeping (``output_shape`` and the like).

``comer_d2.load`` loads a trained model, ready to be called on images; it needs Detectron2.
"""

from importlib.util import find_spec
from typing import Any

__version__ = "0.2.0"
__all__ = ["ViTCoMer", "load"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the op and the network can be used without importing Detectron2.
    if name == "load":
        from .d2.predictor import load

        return load
    if name != "ViTCoMer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec("detectron2") is None:
        from .network import ViTCoMerNet

        return ViTCoMerNet
    from .d2.modeling.backbone import ViTCoMer

    return ViTCoMer
