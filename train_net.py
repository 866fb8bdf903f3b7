#!/usr/bin/env python3
"""Train or evaluate the model that a LazyConfig describes.

python train_net.py --config-file configs/COCO/mask_rcnn_comer_s_1x.py --num-gpus 8
python train_net.py --config-file ... --eval-only train.init_checkpoint=output/model_final.pth

Also under torchrun and srun. The command line is in comer_d2/d2/cli.py, what it does in comer_d2/d2/engine.
"""

import sys

try:
    from comer_d2.d2.cli import main
except ImportError as error:
    if "detectron2" not in str(error).lower():
        raise
    sys.exit(f"train_net.py: error: {error}")

if __name__ == "__main__":
    sys.exit(main())
