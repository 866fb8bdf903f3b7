"""Runs train_net.py's main under torchrun, then compares the processes' weights. Not a test itself.

Prints "weights agree" in the first process when all trained parameters, and their moving average where
there is one, are the same, bit for bit, in every process, and differ from their initial values, and when the
buffers of what was evaluated are the same; and how often each process checked the data.
"""

import sys

import torch
import torch.distributed as dist

from comer_d2.d2.cli import main
from comer_d2.d2.engine import checks, launch, run
from comer_d2.d2.engine.average import WeightAverage
from comer_d2.d2.engine.trainer import Trainer

trainers: list[Trainer] = []
averages: list[WeightAverage | None] = []
_build_trainer = run.build_trainer


def _remembering(*args, **kwargs):
    result = _build_trainer(*args, **kwargs)
    trainers.append(result[0])
    averages.append(result[2].average)
    _initial.append(_flat(result[0].bare_model))
    return result


def _flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


_initial: list[torch.Tensor] = []
run.build_trainer = _remembering
_checked: list[str] = []
_check_dataset = checks.check_dataset
checks.check_dataset = lambda cfg: (_checked.append(cfg.train.output_dir), _check_dataset(cfg))[1]
# Leaving the process group is the last thing main does; the comparison still needs it.
launch.dist.destroy_process_group = lambda: None

code = main(sys.argv[1:])
for model in [trainers[0].bare_model, *(average.model for average in averages if average)]:
    own = _flat(model)
    all_weights = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(all_weights, own)
    assert all(torch.equal(other, own) for other in all_weights)
    assert not torch.equal(own, _initial[0])
evaluated = averages[0].model if averages[0] else trainers[0].bare_model
own = torch.cat([buffer.double().flatten() for buffer in evaluated.buffers()])
all_buffers = [torch.empty_like(own) for _ in range(dist.get_world_size())]
dist.all_gather(all_buffers, own)
assert all(torch.equal(other, own) for other in all_buffers), "buffers differ"
counts = [None] * dist.get_world_size()
dist.all_gather_object(counts, len(_checked))
if dist.get_rank() == 0:
    print(f"weights agree among {len(all_weights)}; checked {counts} times", flush=True)
sys.exit(code)
