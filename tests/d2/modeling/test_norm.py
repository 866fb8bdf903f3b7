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
from comer_d2.d2.modeling.norm import GlooSyncBatchNorm, norm_layer
from tests.networks import make_network

PROCESSES = 2
CHANNELS = 8


def tiny(norm: str) -> ViTCoMer:
    return make_network(
        ViTCoMer,
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
    ("backend", "expected"), [("nccl", nn.SyncBatchNorm), ("gloo", GlooSyncBatchNorm)]
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


def features(dtype: torch.dtype, mean: float = 5.0, deviation: float = 0.5) -> list[torch.Tensor]:
    """Two processes' shares, (B, C, H, W): another number of images and pixels in each."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, CHANNELS, 6, 6), (1, CHANNELS, 10, 7)]
    shares = [torch.randn(size, generator=generator) * deviation + mean for size in sizes]
    return [(share + rank * deviation).to(dtype) for rank, share in enumerate(shares)]


# (dtype, mean, deviation) -> how far from float64 the result may be, in deviations: what the input's
# own rounding makes of it.
CASES = {
    (torch.float32, 0.0, 1.0): 1e-5,
    (torch.float32, 5.0, 0.5): 1e-4,
    (torch.float32, 300.0, 0.01): 1e-2,
    (torch.bfloat16, 5.0, 0.5): 5e-2,
}


def normalise_a_share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    saved = []
    for case in CASES:
        share = features(*case)[rank].requires_grad_()
        norm = norm_layer("SyncBN")(CHANNELS)
        result = norm(share)
        (result.float() ** 3).sum().backward()
        weights = norm.weight.grad, norm.bias.grad
        saved.append((result, share.grad, *weights, norm.running_mean, norm.running_var))
    torch.save(saved, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_over_gloo_equal_one_with_all_pixels(tmp_path: Path) -> None:
    """In float64: the pixels of both shares as one image of one row."""
    spawn(normalise_a_share, (str(tmp_path),), nprocs=PROCESSES)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    for number, (case, tolerance) in enumerate(CASES.items()):
        shares = features(*case)
        pixels = torch.cat([share.double().flatten(2).mT.flatten(0, 1) for share in shares])
        whole = pixels.mT[None, :, None].requires_grad_()
        norm = nn.BatchNorm2d(CHANNELS).double()
        expected = norm(whole)
        (expected**3).sum().backward()
        of_case = [process[number] for process in both]
        assert {result.dtype for result, *_ in of_case} == {case[0]}
        for position, reference in ((0, expected), (1, whole.grad)):
            found = torch.cat([saved[position].flatten(2).mT.flatten(0, 1) for saved in of_case])
            reference = reference[0, :, 0].mT
            scale = max(1.0, reference.abs().max().item())
            torch.testing.assert_close(
                found.double(), reference, atol=tolerance * scale, rtol=0, msg=f"{case}: {position}"
            )
        for position, reference in ((2, norm.weight.grad), (3, norm.bias.grad)):
            found = sum(saved[position] for saved in of_case).double()
            scale = max(1.0, reference.abs().max().item())
            torch.testing.assert_close(found, reference, atol=10 * tolerance * scale, rtol=0)
        for saved in of_case:
            torch.testing.assert_close(saved[4].double(), norm.running_mean, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(saved[5].double(), norm.running_var, atol=1e-6, rtol=1e-2)
