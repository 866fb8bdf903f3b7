"""The same model and data, trained for semantic segmentation alone."""

from detectron2.config import LazyCall as L

from comer_d2.d2.data.mappers import SemanticMapper
from comer_d2.d2.modeling.semantic_tta import SemanticViews

from .mask2former_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

for _split in ("train", "test"):
    dataloader[_split].mapper = L(SemanticMapper)(
        is_train=_split == "train",
        dataset_name="${..dataset.names}",
        augmentations=[],
        image_format="RGB",
    )
dataloader.evaluator = [dataloader.evaluator[2]]
model.tasks = ["semantic"]
model.views = L(SemanticViews)(window=None, stride=None, scales=[1.0], flip=False)
train.best_checkpointer.metric = "sem_seg/mIoU"
train.output_dir = "output/quickstart-seg/semantic"
