"""torch.compile block by block, and as a whole, at many image sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from comer_d2.layers.drop_path import DropPath
from comer_d2.network import ViT, ViTCoMerNet
from comer_d2.network.compiled import compile_blocks
from tests.device import autocast, no_default_device
from tests.networks import TINY, make_network

# Sides that divide by 32 and by the windows, and those that do not.
SIZES = [
    (64, 64), (64, 96), (96, 128), (160, 64), (128, 128),
    (96, 224), (130, 70), (33, 97), (256, 192), (64, 320),
]  # fmt: skip


def tiny(**change: Any) -> ViTCoMerNet:
    torch.manual_seed(0)
    return make_network(**{**TINY, **change})


KINDS = 5


class Graphs:
    """A compiler that only traces and counts: what follows is PyTorch's, and takes minutes."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        self.count = 0

    def backend(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable:
        self.count += 1
        return graph.forward


def step(net: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Outputs, and gradients of a loss that reaches every parameter."""
    net.zero_grad()
    with no_default_device():
        outputs = net(image)
        outputs = outputs if isinstance(outputs, dict) else {"map": outputs}
        sum(output.float().square().mean() for output in outputs.values()).backward()
    named = {name.removeprefix("module."): p.grad for name, p in net.named_parameters()}
    return {**outputs, **{f"gradient of {name}": grad for name, grad in named.items()}}


def test_each_kind_of_part_is_one_graph_for_all_sizes_and_computes_what_eager_does() -> None:
    # In float64, for some gradients cancel to rounding noise.
    eager, net, graphs = tiny().double(), tiny().double(), Graphs()
    names = list(net.state_dict())
    compile_blocks(net, backend=graphs.backend, fullgraph=True)
    assert list(net.state_dict()) == names
    counts = []
    for size in SIZES:
        image = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(step(net, image), step(eager, image), atol=1e-11, rtol=0)
        counts.append(graphs.count)
    assert counts[0] == KINDS
    assert counts[-1] <= KINDS + 2, counts
    image = torch.randn(1, 3, *SIZES[7], dtype=torch.float64)
    with torch.no_grad(), no_default_device():
        torch.testing.assert_close(net.eval()(image), eager.eval()(image), atol=1e-11, rtol=0)


def test_blocks_share_a_graph_whatever_their_rate_of_drop_path() -> None:
    torch.manual_seed(0)
    graphs, windows = Graphs(), {"window_size": 2, "window_block_indexes": (0, 1, 3)}
    net = ViT(embed_dim=24, depth=5, num_heads=3, drop_path_rate=0.4, **windows)
    compile_blocks(net, backend=graphs.backend, fullgraph=True)
    step(net, torch.randn(2, 3, 32, 48))
    assert graphs.count == 3  # the first, without drop path; those in windows; global ones


def test_drop_path_of_a_compiled_branch() -> None:
    """Other draws than eager's, but of the same distribution: a branch is dropped, or scaled up."""
    drop, graphs = DropPath(0.25).train(), Graphs()
    compiled = torch.compile(drop, backend=graphs.backend, fullgraph=True)
    kept = compiled(torch.ones(4000, 2, 3))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (kept == kept[:, :1, :1]).all()
    assert kept.mean().item() == pytest.approx(1, abs=0.05)  # five times its deviation
    assert torch.equal(torch.compile(drop.eval(), backend=graphs.backend)(kept), kept)


@pytest.mark.slow
def test_with_checkpointing_and_autocast_in_distributed_data_parallel(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 96, 80)
    compiled = tiny(use_act_checkpoint=True)
    compile_blocks(compiled, backend=Graphs().backend, fullgraph=True)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with autocast(torch.bfloat16):
            expected = step(tiny(), image)
            found = step(DistributedDataParallel(compiled), image)
    finally:
        dist.destroy_process_group()
    for name, value in expected.items():
        error = (found[name].float() - value.float()).norm() / value.float().norm()
        assert error < 0.1 or value.abs().max() < 1e-6, (name, error)


@pytest.mark.slow
def test_one_graph_of_the_whole_network_is_for_all_sizes() -> None:
    graphs, net = Graphs(), tiny()
    net.compile(backend=graphs.backend, fullgraph=True, dynamic=True)
    # First a size whose sides are no other numbers of the network: more than one graph is for others.
    for size in [(96, 160), *SIZES]:
        step(net, torch.randn(2, 3, *size))
    assert graphs.count <= 2


@pytest.mark.slow
def test_the_real_compiler() -> None:
    """One block alone: writing and compiling its C++ takes most of the time."""
    torch._dynamo.reset()
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(
            ViT(
                embed_dim=24,
                depth=1,
                num_heads=3,
                window_size=0,
                window_block_indexes=[],
                pretrain_img_size=64,
            )
        )
    compile_blocks(nets[1])
    for size in ((64, 96), (80, 48)):
        image = torch.randn(2, 3, *size)
        eager, compiled = (step(net, image) for net in nets)
        for name, value in eager.items():
            torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-4, msg=name)
