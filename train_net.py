#!/usr/bin/env python3
"""Train or evaluate the detector that a LazyConfig describes.

python train_net.py --config-file configs/COCO/mask_rcnn_comer_s_1x.py --num-gpus 8
python train_net.py --config-file ... --eval-only train.init_checkpoint=output/model_final.pth

Also under torchrun and srun. What it does is in comer_d2/d2/engine.
"""

import logging
import sys
import warnings

# From Detectron2's sources under current setuptools and torch; nothing a user could act on.
for _message in (
    "pkg_resources is deprecated",
    "`torch.jit.script",
    "torch.meshgrid",
    "`broadcast_buffers`",
):
    warnings.filterwarnings("ignore", message=_message)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

try:
    from comer_d2.d2.engine.main import main
except ImportError as error:
    if "detectron2" not in str(error).lower():
        raise
    sys.exit(f"train_net.py: error: {error}")

if __name__ == "__main__":
    sys.exit(main())
