"""What a norm's name becomes, alone and in company."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.multiprocessing.spawn import spawn

from comer_d2.d2.modeling import norm as norm_module
from comer_d2.d2.modeling.backbone import ViTCoMer
from comer_d2.d2.modeling.norm import Float32SyncBatchNorm, norm_layer

PROCESSES = 2
CHANNELS = 8


def tiny(norm: str) -> ViTCoMer:
    return ViTCoMer(
        embed_dim=32,
        depth=2,
        num_heads=2,
        window_block_indexes=[],
        interaction_indexes=[[0, 0], [1, 1]],
        deform_num_heads=2,
        stem_width=8,
        norm=norm,
    )


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("SyncBN", nn.BatchNorm2d),
        ("BN", nn.BatchNorm2d),
        ("FrozenBN", FrozenBatchNorm2d),
        (nn.InstanceNorm2d, nn.InstanceNorm2d),
    ],
)
def test_one_process(norm: str | Callable[[int], nn.Module], expected: type) -> None:
    assert type(norm_layer(norm)(CHANNELS)) is expected


@pytest.mark.parametrize(
    ("backend", "expected"), [("nccl", nn.SyncBatchNorm), ("gloo", Float32SyncBatchNorm)]
)
def test_every_norm_of_the_backbone_is_synchronised(
    monkeypatch: pytest.MonkeyPatch, backend: str, expected: type
) -> None:
    monkeypatch.setattr(norm_module.comm, "get_world_size", lambda: PROCESSES)
    monkeypatch.setattr(norm_module.dist, "get_backend", lambda: backend)
    norms = [m for m in tiny("SyncBN").modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    # stem 3, downsampling 3, MRFP 3 levels in each of 2 interactions, outputs 4
    assert [type(m) for m in norms] == [expected] * 16


@pytest.mark.parametrize("norm", ["Batch", ""])
def test_unknown_norm_is_refused(norm: str) -> None:
    with pytest.raises(ValueError, match=f"norm '{norm}' is none that Detectron2 knows"):
        tiny(norm)


def features(dtype: torch.dtype) -> torch.Tensor:
    """(4, C, 6, 6) whose mean is ten deviations, as a ReLU's output may be."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, CHANNELS, 6, 6, generator=generator) * 0.5 + 5).to(dtype)


TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def normalise_a_share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    saved: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = {}
    for dtype in TOLERANCE:
        share = features(dtype).chunk(PROCESSES)[rank].requires_grad_()
        result = norm_layer("SyncBN")(CHANNELS)(share)
        (result.float() ** 3).sum().backward()
        saved[dtype] = result, share.grad
    torch.save(saved, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_over_gloo_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    spawn(normalise_a_share, (str(tmp_path),), nprocs=PROCESSES)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    for dtype, tolerance in TOLERANCE.items():
        whole = features(dtype).float().requires_grad_()
        expected = nn.BatchNorm2d(CHANNELS)(whole)
        (expected**3).sum().backward()
        result, grad = (torch.cat(parts) for parts in zip(*(share[dtype] for share in shares)))
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=0)
        largest = whole.grad.abs().max().item()
        torch.testing.assert_close(grad.float(), whole.grad, atol=tolerance * largest, rtol=0)
