"""Multi-scale deformable attention: the compiled operator and its plain PyTorch meaning."""

from .library import OperatorWarning, cpu_capability, library_status
from .ms_deform_attn import ms_deform_attn, ms_deform_attn_from_tensors, ms_deform_attn_fused
from .reference import ms_deform_attn_fused_reference, ms_deform_attn_reference

__all__ = [
    "OperatorWarning",
    "cpu_capability",
    "library_status",
    "ms_deform_attn",
    "ms_deform_attn_from_tensors",
    "ms_deform_attn_fused",
    "ms_deform_attn_fused_reference",
    "ms_deform_attn_reference",
]
