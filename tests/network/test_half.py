"""Autocast: errors against float32, beside those of PyTorch's own autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comer_d2.layers.levels import Levels
from comer_d2.layers.norm import LayerNorm, LayerScale
from comer_d2.network import ViTCoMerNet
from tests.device import autocast, seeded
from tests.networks import make_network

SIZES = {
    "T": dict(embed_dim=192, num_heads=3),
    "S": dict(embed_dim=384, num_heads=6),
}


def network(size: str) -> ViTCoMerNet:
    """Everything open and drawn: a new network's gates and offsets hide errors."""
    torch.manual_seed(0)
    net = make_network(
        **SIZES[size], deform_num_heads=6, deform_ratio=1.0, pretrain_img_size=592, gate_init=0.5
    )
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("sampling.weight"):
                parameter.normal_(std=0.02)
            elif parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def plain_autocast(patch: pytest.MonkeyPatch) -> None:
    """What eager PyTorch makes of the same network: float32 norms, scales and residual streams."""

    def add(self: Levels, tokens: Tensor, others: Tensor, level: int) -> Tensor:
        parts = list(self.split(tokens))
        parts[level] = parts[level] + others
        return torch.cat(parts, dim=1)

    patch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)
    patch.setattr(LayerScale, "forward", lambda self, x: x * self.gamma)
    patch.setattr(Levels, "add", add)


def as_on_cuda(patch: pytest.MonkeyPatch) -> None:
    """Norms whose weights are rounded, too, as CUDA's kernel wants them."""

    def forward(self: LayerNorm, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            x, weight, bias = (t.to(dtype).float() for t in (x, self.weight, self.bias))
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(dtype)

    patch.setattr(LayerNorm, "forward", forward)


def run(
    net: ViTCoMerNet, image: Tensor, dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    net.zero_grad()
    with autocast(dtype or torch.bfloat16, enabled=dtype is not None):
        outputs = net(image)
    generator = seeded(1)
    total = sum(
        (o.float() * torch.randn(o.shape, generator=generator)).sum() for o in outputs.values()
    )
    total.backward()
    grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    return {name: o.detach() for name, o in outputs.items()}, grads


def errors(rough: dict[str, Tensor], exact: dict[str, Tensor]) -> Tensor:
    return torch.stack(
        [(rough[name].float() - x).norm() / x.norm().clamp(min=1e-3) for name, x in exact.items()]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "dtype"), [("T", torch.bfloat16), ("T", torch.float16), ("S", torch.bfloat16)]
)
def test_errors_are_at_most_twice_plain_autocasts(size: str, dtype: torch.dtype) -> None:
    """Of every output, and of gradients by their median and their ninth decile."""
    net, image = network(size).train(), torch.randn(1, 3, 160, 128)
    exact = run(net, image, None)
    own = run(net, image, dtype)
    with pytest.MonkeyPatch.context() as patch:
        plain_autocast(patch)
        plain = run(net, image, dtype)
    with pytest.MonkeyPatch.context() as patch:
        as_on_cuda(patch)
        of_cuda = run(net, image, dtype)
    quantiles = torch.tensor([0.5, 0.9])
    plain_errors = errors(plain[1], exact[1]).quantile(quantiles)
    for found in (own, of_cuda):
        assert all(o.dtype == dtype for o in found[0].values())
        assert (errors(found[0], exact[0]) < 2 * errors(plain[0], exact[0])).all()
        own_errors = errors(found[1], exact[1]).quantile(quantiles)
        assert (own_errors < 2 * plain_errors).all(), (own_errors, plain_errors)
