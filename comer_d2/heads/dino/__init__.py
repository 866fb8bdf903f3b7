"""DINO, one file a part: head.py puts them together."""

from .criterion import DINOCriterion
from .decoder import DINODecoder
from .denoising import DenoisingGenerator
from .encoder import DINOEncoder
from .head import DINOHead
from .matcher import BoxMatcher
from .neck import ChannelMapper
from .proposals import ProposalHead

__all__ = [
    "BoxMatcher",
    "ChannelMapper",
    "DINOCriterion",
    "DINODecoder",
    "DINOEncoder",
    "DINOHead",
    "DenoisingGenerator",
    "ProposalHead",
]
