"""Multi-scale deformable attention: the compiled op and its plain PyTorch meaning."""

from .reference import ms_deform_attn_reference

ms_deform_attn = ms_deform_attn_reference

__all__ = ["ms_deform_attn", "ms_deform_attn_reference"]
