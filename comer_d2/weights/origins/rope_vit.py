"""RoPE-ViT with axial frequencies: DeiT-III's names, and rotary positions.

Names: naver-ai/rope-vit; timm. Its mixed frequencies are learnt in every block, and not read here.
"""

from ..conversion import Layout, Origin
from ..vit_steps import GAMMA, HEADS, PLAIN_BLOCK, tokens

AXIAL = Layout(
    {**PLAIN_BLOCK, **GAMMA},
    HEADS,
    (r"cls_token", r"blocks\.0\.attn\.qkv\.bias", r"blocks\.0\.gamma_1"),
    takes=("cls_token", "pos_embed"),
    prepare=(tokens("cls_token"),),
)
ORIGINS = (Origin("rope-vit", "RoPE-ViT, axial", (AXIAL,), computes={"rope": "rope-vit"}),)
