"""The same model and data, trained for instance segmentation alone: without the page."""

from .mask2former_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

dataloader.train.mapper.things_only = True
dataloader.evaluator = [dataloader.evaluator[1]]
model.sem_seg_head.predictor.num_classes = "${dataset.num_things}"
model.stuff_classes = []
model.tasks = ["instance"]
train.best_checkpointer.metric = "segm/AP"
train.output_dir = "output/quickstart-seg/instance"
