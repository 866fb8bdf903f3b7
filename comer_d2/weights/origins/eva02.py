"""EVA-02, and the vision towers of EVA-02-CLIP.

Names: baaivision/EVA, EVA-02 and EVA-CLIP; timm.
"""

from ..conversion import Conversion, Layout, Origin
from ..files import WeightsError
from ..vit_steps import (
    COMPUTED,
    GATED_MLP,
    HEADS,
    PLAIN_BLOCK,
    QUERY_VALUE_BIAS,
    tokens,
    unpack_gates,
)


def check_gates(conversion: Conversion) -> None:
    """EVA, the first, has EVA-02's names in timm, and neither its gates nor its rotary positions."""
    gates = ("blocks.0.mlp.fc1_g.weight", "blocks.0.mlp.w1.weight", "blocks.0.mlp.w12.weight")
    if not any(name in conversion.left or name in conversion.tensors for name in gates):
        raise WeightsError("this is not EVA-02: its MLPs have no gate (EVA's, the first, have not)")


GATE = ("blocks.#.mlp.fc1_g", "blocks.#.mlp.fc1_x")
EVA02 = Layout(
    {
        **PLAIN_BLOCK,
        **QUERY_VALUE_BIAS,
        **GATED_MLP,
        tuple(f"blocks.#.attn.{p}_proj.weight" for p in "qkv"): "blocks.#.attn.qkv.weight",
        **{f"blocks.#.attn.{p}_proj.bias": f"blocks.#.attn.qkv.{p}_bias" for p in "qv"},
        **dict.fromkeys(
            ("blocks.#.attn.inner_attn_ln", "blocks.#.attn.norm"), "blocks.#.attn.norm"
        ),
        **dict.fromkeys(("blocks.#.mlp.ffn_ln", "blocks.#.mlp.norm"), "blocks.#.mlp.norm"),
        "blocks.#.mlp.w1": GATE[0],
        "blocks.#.mlp.w2": GATE[1],
        "blocks.#.mlp.w12": GATE,
        "blocks.#.mlp.w3": "blocks.#.mlp.fc2",
    },
    {
        **HEADS,
        **dict.fromkeys(
            [f"{at}rope.freqs_{f}" for at in ("", "blocks.#.attn.") for f in ("cos", "sin")],
            COMPUTED,
        ),
    },
    (r"cls_token", r"pos_embed", r"blocks\.0\.attn\.(q_proj\.bias|q_bias)"),
    takes=("cls_token", "pos_embed"),
    prepare=(tokens("cls_token"), unpack_gates, check_gates),
)
ORIGINS = (Origin("eva02", "EVA-02", (EVA02,), computes={"rope": "eva02"}),)
