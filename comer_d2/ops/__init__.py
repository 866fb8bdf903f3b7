"""The compiled operators, multi-scale deformable attention and the token convolution, and their meaning."""

from .library import OperatorWarning, cpu_capability, library_status
from .ms_deform_attn import ms_deform_attn, ms_deform_attn_from_tensors, ms_deform_attn_fused
from .ms_deform_attn_reference import ms_deform_attn_fused_reference, ms_deform_attn_reference
from .portable import portable_decompositions
from .token_depthwise_conv import token_depthwise_conv
from .token_depthwise_conv_reference import token_depthwise_conv_reference

__all__ = [
    "OperatorWarning",
    "cpu_capability",
    "library_status",
    "ms_deform_attn",
    "ms_deform_attn_from_tensors",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
    "portable_decompositions",
    "token_depthwise_conv",
    "token_depthwise_conv_reference",
]
