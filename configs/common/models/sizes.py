"""The sizes, each as one edit of a model: `comer_size(model.backbone.bottom_up, "S")`.

What depends on the pretraining and not on the size (the grid of the position table) is the leaf's. Beyond L
every size belongs to one pretraining: SO400M to SigLIP, H+ and 7B to DINOv3, g to DINOv2, EVA-g to EVA; 7B is
to be frozen (docs/MODEL_ZOO.md has the memory).
"""

VIT = {
    "T": dict(embed_dim=192, depth=12, num_heads=3),
    "S": dict(embed_dim=384, depth=12, num_heads=6),
    "B": dict(embed_dim=768, depth=12, num_heads=12),
    "L": dict(embed_dim=1024, depth=24, num_heads=16),
    "SO400M": dict(embed_dim=1152, depth=27, num_heads=16, mlp_ratio=3.7362),  # 4304
    "H+": dict(embed_dim=1280, depth=32, num_heads=20, mlp="swiglu"),
    "EVA-g": dict(embed_dim=1408, depth=40, num_heads=16, mlp_ratio=4.3637),  # 6144
    "g": dict(embed_dim=1536, depth=40, num_heads=24, mlp_ratio=2.6667, mlp="swiglu"),  # 4096
    "7B": dict(embed_dim=4096, depth=40, num_heads=32, mlp_ratio=2.0, mlp="swiglu"),
}
# The deformable attention's inner width is deform_ratio * embed_dim: half of it for the large ones.
COMER = {
    "T": dict(deform_num_heads=6, deform_ratio=1.0),
    "S": dict(deform_num_heads=6, deform_ratio=1.0),
    "B": dict(deform_num_heads=12, deform_ratio=0.5),
    "L": dict(deform_num_heads=16, deform_ratio=0.5),
    # Heads of 32 channels as in L; 7B's width is L's.
    "SO400M": dict(deform_num_heads=18, deform_ratio=0.5),
    "H+": dict(deform_num_heads=20, deform_ratio=0.5),
    "EVA-g": dict(deform_num_heads=22, deform_ratio=0.5),
    "g": dict(deform_num_heads=24, deform_ratio=0.5),
    "7B": dict(deform_num_heads=32, deform_ratio=0.25),
}
# S and B as released, T as ViT-Adapter-T, L as B. Nothing is published beyond: ViT-Adapter-L's for all.
DROP_PATH_RATE = {"T": 0.1, "S": 0.2, "B": 0.3, "L": 0.3}
DROP_PATH_RATE |= {"SO400M": 0.4, "H+": 0.4, "EVA-g": 0.4, "g": 0.4, "7B": 0.4}
NUM_INTERACTIONS = 4


def quarters(depth):
    """First and last block of every quarter of the depth: of each interaction."""
    ends = [depth * (i + 1) // NUM_INTERACTIONS for i in range(NUM_INTERACTIONS)]
    return [[first, end - 1] for first, end in zip([0, *ends], ends)]


def of_size(table, size):
    """A table's row of a size, or an error that lists the sizes it has."""
    if size not in table:
        raise ValueError(f"size must be one of {', '.join(table)}, got {size!r}")
    return table[size]


def vit_size(vit, size):
    """Gives a plain ViT, or the ViT of a ViT-CoMer, one of the sizes.

    The last block of every quarter of the depth is global, so that each interaction ends on tokens
    that have seen the whole image: every third block of 12 (2, 5, 8, 11), every sixth of 24 (5, 11,
    17, 23), as in ViTDet and ViT-Adapter.
    """
    vit.update(of_size(VIT, size))
    vit.drop_path_rate = DROP_PATH_RATE[size]
    whole = [last for _, last in quarters(vit.depth)]
    vit.window_block_indexes = [i for i in range(vit.depth) if i not in whole]


def comer_size(comer, size):
    """Gives a ViT-CoMer one of the sizes. Its interactions share out the blocks evenly."""
    vit_size(comer.vit, size)
    comer.update(COMER[size])
    comer.interaction_indexes = quarters(comer.vit.depth)


def freeze(comer):
    """Freezes all of a ViT-CoMer's ViT: only read, its linear layers in bfloat16."""
    comer.vit.update(freeze_at=comer.vit.depth, frozen_dtype="bfloat16")
    comer.use_cti_to_v = False
