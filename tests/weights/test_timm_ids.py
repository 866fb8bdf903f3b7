"""`timm:<id>`: through timm, its own table of weights and the hub's cache, without a network."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _builder

from comer_d2.network import ViT, ViTCoMerNet
from comer_d2.weights import WeightsError, load_weights
from tests.weights.cases import CASES, make_net, randomise

MODEL_ID = "vit_tiny_patch16_224.augreg_in21k"
TINY = dict(embed_dim=192, num_heads=3)


def tiny_net(**arguments: object) -> ViTCoMerNet:
    return ViTCoMerNet(
        ViT(**TINY | arguments),
        deform_num_heads=3,
        stem_width=4,
        num_extra_cti=0,
        cnn_feature_interaction=False,
        use_mrfp=False,
    )


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache: Path, repository: str, weights: dict[str, torch.Tensor]) -> None:
    """Puts weights into the cache as a download would have."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    save_file(weights, folder / "snapshots" / commit / "model.safetensors")


def test_from_the_hubs_cache(cache):
    config = timm.get_pretrained_cfg(MODEL_ID)
    weights = timm.create_model(MODEL_ID).state_dict()
    weights = {name: torch.randn_like(tensor) for name, tensor in weights.items()}
    put(cache, config.hf_hub_id, weights)
    net = tiny_net()
    report = load_weights(net, f"timm:{MODEL_ID}")
    for name, tensor in net.vit.state_dict().items():
        if name.startswith(("blocks", "patch_embed")) and ".ls" not in name:
            assert torch.equal(tensor, weights[name]), name
    assert report.source == f"timm:{MODEL_ID}"
    assert report.source_elements == sum(t.numel() for t in weights.values())


def test_timm_says_where_an_id_is(monkeypatch):
    """The repository comes from timm's table; what comes from there is filtered by timm."""
    asked = []
    original = randomise(timm.create_model("vit_tiny_patch16_dinov3_qkvb", depth=12)).state_dict()

    def load_state_dict_from_hf(repository, *arguments, **keywords):
        asked.append(repository)
        return dict(original)

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", load_state_dict_from_hf)
    dinov3 = dict(use_abs_pos=False, rope="dinov3", layer_norm_eps=1e-5, num_prefix_tokens=5)
    net = tiny_net(**dinov3)
    model_id = "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"
    load_weights(net, f"timm:{model_id}")
    assert asked == [timm.get_pretrained_cfg(model_id).hf_hub_id]
    assert torch.equal(net.vit.blocks[11].mlp.fc2.weight, original["blocks.11.mlp.fc2.weight"])
    assert torch.equal(net.vit.prefix_tokens[:, 1:], original["reg_token"])


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        (MODEL_ID, rf"timm could not get '{MODEL_ID}': .*\. Without a network, its hub cache must"),
        ("vit_tiny_patch16_224.of_nobody", r"timm could not get 'vit_tiny_patch16_224\.of_nobody'"),
        (
            "vit_gigantic",
            r"has no model 'vit_gigantic': timm\.list_models\(pretrained=True\) lists",
        ),
    ],
)
def test_without_a_network(cache, model_id, message):
    net = tiny_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(net, f"timm:{model_id}")
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_sha256_is_for_files():
    with pytest.raises(WeightsError, match="sha256 is for files"):
        load_weights(tiny_net(), f"timm:{MODEL_ID}", sha256="0" * 64)


SMALL = dict(embed_dim=48, depth=1, num_heads=3, img_size=64, num_classes=0)
DIFFERENT = {
    "no ViT": ("resnet18", {}, "timm's ResNet with .* no ViT that is known here"),
    "no usual ViT": ("swin_tiny_patch4_window7_224", {}, "timm's SwinTransformer"),
    "activation": (
        "vit_base_patch16_224",
        SMALL | dict(act_layer="gelu_tanh"),
        "mlp is 'gelu_tanh', not 'gelu'",
    ),
    "norms of q and k": (
        "vit_base_patch16_224",
        SMALL | dict(qk_norm=True),
        r"blocks\.0\.attn\.q_norm\.weight",
    ),
    "rotary positions": (
        "vit_base_patch16_rope_mixed_224",
        SMALL,
        r"does not fit: rope\.freqs",
    ),
    "order of the norms": (
        "vit_base_patch16_224",
        SMALL | dict(block_fn=timm.models.vision_transformer.ResPostBlock),
        "ResPostBlock blocks, and no ViT that is known here",
    ),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_model_that_computes_something_else(kind, monkeypatch):
    name, arguments, message = DIFFERENT[kind]
    model = timm.create_model(name, **arguments)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    net = make_net(CASES["deit"], depth=1, num_prefix_tokens=0)
    with pytest.raises(WeightsError, match=message):
        load_weights(net, f"timm:{name}")


def test_another_number_of_heads_is_noticed():
    """It does not show in the shapes."""
    net = tiny_net(num_heads=6)
    source = timm.create_model("vit_tiny_patch16_224").state_dict()
    with pytest.raises(WeightsError, match="num_heads: the weights need 3, the network has 6"):
        load_weights(net, source)
