"""What every training run has: Detectron2's own keys, and this project's.

Detectron2's: output_dir, init_checkpoint, max_iter, ddp, checkpointer (period, max_to_keep),
eval_period, log_period and device ("cuda" falls back to the CPU, and says so, where there is none).
"""

from detectron2 import model_zoo

train = model_zoo.get_config("common/train.py").train

# Length of the run in passes over the training images: then max_iter follows from their number and the
# batch, eval_period and checkpointer.period keep their shares of it (but evaluations are an epoch apart at
# least), and a warm-up of so many iterations is at most a twentieth of it. null: max_iter counts. Of the two, the command line's counts;
# there, only one may be given.
train.epochs = None

# On a GPU: try how many images fit at once, with the worst samples of the data, and accumulate the rest of an
# update, which sees as many images as the config says.
train.auto_batch_size = False

# The images per update (total_batch_size * accumulation_steps) that optimizer.lr is for. With another
# number the rate is multiplied by the root of their ratio, as fits AdamW; optimizer.lr on the command
# line is taken as it is. null: so is the config's.
train.lr_batch_size = None

# Mixed precision (train.amp.enabled): "bfloat16", or "float16" with loss scaling.
train.amp.dtype = "bfloat16"

# Largest norm of all gradients together; null does not clip.
train.clip_grad = dict(max_norm=None, norm_type=2.0)

# Batches per update. Their losses are averaged and the learning rate stays what it is, so one
# update sees dataloader.train.total_batch_size * accumulation_steps images: on a small GPU, divide
# the first by what the second is. Iterations count updates. Mask2Former, UPerNet and DINO, whose losses
# are divided by the objects or pixels of a batch, have the gradients of the larger batch (but for DINO's
# denoising, whose groups depend on what comes together in a batch). R-CNN, ATSS, GFL and Co-DINO's
# other heads divide by boxes that are only chosen during the forward pass, when the other batches are
# not seen yet: their losses are averaged, so an object in a batch of few counts more.
train.accumulation_steps = 1

# The checkpoint that evaluated best is kept as model_best.pth; mode is "max" or "min".
train.best_checkpointer = dict(metric="bbox/AP", mode="max")

# A moving average of the weights (Polyak averaging) beside them: it is what is evaluated, kept as
# model_best.pth, and what `comer-d2 predict` and --eval-only take from this run's checkpoints. Its decay
# grows from 0 to this one. The authors' recipes have none.
train.ema = dict(enabled=False, decay=0.9998)

# Ends the run after so many evaluations in a row (patience; null: never) that are not better than the best
# by min_delta.
train.early_stopping = dict(
    patience=None,
    metric="${..best_checkpointer.metric}",
    mode="${..best_checkpointer.mode}",
    min_delta=0.0,
)

# Whether output_dir/report/index.html, a page on the evaluation, is written after each one of a best model
# and by --eval-only.
train.report = True

# A total loss of so many times the median of the last 20 is a spike: the step is written to the output folder, at most
# three times in a run, for `comer-d2 replay`; so is a step whose loss or gradient is not finite. null: no spikes.
train.spike_factor = 10.0

# For so large a share of the run, from its beginning, the ViT is not updated, while new layers learn.
# (The ViT's freeze_at freezes it for all of it, and saves work and memory.)
train.frozen_vit = 0.0

# Beside the terminal and metrics.json: "tensorboard", "csv", "wandb", "mlflow", any of them.
train.loggers = ["tensorboard"]

# What init_checkpoint can be, and how it loads: docs/PRETRAINED.md. For a pretrained ViT whose tensor
# names fit several families, which one it is: "clip-quickgelu".
train.init_family = None

# Names (shell patterns) that may be missing in init_checkpoint, without a place or of another shape in
# this model, such as a classifier that is to be learnt anew: ["*.cls_score.*"]. Anything else is an
# error.
train.init_allow = []

# The SHA-256 that the file must have.
train.init_sha256 = None

# torch.compile, for training and evaluation: "blocks" compiles the ViT's blocks and what surrounds them
# one by one, each kind once for all image sizes; "model" the whole backbone, which takes far longer.
# Heads stay as they are. null: nothing is compiled.
train.compile = None

# Read by Detectron2's default_setup: -1 takes a new seed for every run; "high" lets float32
# matrix products and convolutions use TF32.
train.seed = -1
train.cudnn_benchmark = False
train.float32_precision = ""
