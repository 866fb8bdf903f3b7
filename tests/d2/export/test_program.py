"""Exported files: what another runtime computes is what the model computes, at other sizes, too."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from PIL import Image
from torch import nn

from comer_d2 import load
from comer_d2.__main__ import main
from comer_d2.d2.errors import UserError
from comer_d2.d2.export import compare
from comer_d2.d2.export.program import Writer, check_target, export_program
from comer_d2.heads.dense_inference import detect
from comer_d2.heads.detections import Detections
from comer_d2.network.timm_pyramid import TimmPyramid
from tests.d2.export.test_traceable import build
from tests.d2.runs import ROOT
from tests.d2.untrained import write_digits, write_run

# Without "semantic": random weights give classes that tie, and rounding then decides a pixel's.
SHALLOW = {
    "tasks": ["panoptic", "instance"],
    "sem_seg_head__pixel_decoder__num_layers": 1,
    "sem_seg_head__predictor__num_layers": 1,
    "stuff_classes": [0],
    "score_threshold": 0.0,
    "overlap_threshold": 0.0,
}


def photos(count: int, height: int = 96, width: int = 128) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, height, width), generator=generator).float() for _ in range(count)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("leaf, overrides", [("mask_rcnn", {}), ("mask2former", SHALLOW)])
def test_heads_in_onnx(leaf: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    """On maps of mean colours; deformable attention, where a head has it, in operators of every runtime."""
    images = [*photos(2), *photos(1, 128, 64)]
    path = tmp_path / "model.onnx"
    notes = {"class_names": '["a", "é \\u0000"]'}
    exported = export_program(build(leaf, **overrides), path, format="onnx", images=images, dynamic=True, notes=notes)  # fmt: skip
    session = onnxruntime.InferenceSession(path)
    assert session.get_modelmeta().custom_metadata_map == notes
    found = dict(zip(exported.outputs, session.run(None, {"images": images[2][None].numpy()}), strict=True))  # fmt: skip
    assert found["scores"].max() > compare.COUNTED
    if leaf == "mask2former":
        assert exported.outputs == ["scores", "classes", "masks", "panoptic_seg", "segment_scores", "segment_classes"]  # fmt: skip
        assert found["panoptic_seg"].shape == (1, 128, 64)
        assert found["panoptic_seg"].max() == (found["segment_classes"] >= 0).sum() > 0
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "GridSample" not in operators
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "pkg.onnxscript.torch_lib.common"}  # fmt: skip


@pytest.mark.slow
def test_a_whole_model_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A ViT-CoMer with Mask2Former, at any size."""
    kind = ("mask2former_comer_digits.py", ["model.backbone.vit.depth=2", "model.backbone.interaction_indexes=[[0,0],[1,1]]"])  # fmt: skip
    run = write_run(tmp_path / "run", write_digits(tmp_path), kind)
    path = tmp_path / "model.pt2"
    assert main(["export", str(run), str(path), "--format", "torch-export"]) == 0
    printed = capsys.readouterr().out
    assert (
        "out: sem_seg, scores, classes, masks, panoptic_seg, segment_scores, segment_classes"
        in printed
    )
    assert "128 x 128: sem_seg within" in printed and "96 x 128: sem_seg within" in printed
    assert path.stat().st_size > 1e6


@pytest.mark.slow
def test_what_has_learnt_finds_the_same_in_onnx(
    learnt_run: Path, digits: Path, tmp_path: Path
) -> None:
    path = tmp_path / "digits.onnx"
    size = ["--fixed-size", "128", "128"]
    assert main(["export", str(learnt_run), str(path), "--format", "onnx", *size]) == 0
    session = onnxruntime.InferenceSession(path)
    names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    model = load(learnt_run)
    found = 0
    for image in sorted((digits / "digits" / "val").iterdir())[:20]:
        pixels = np.asarray(Image.open(image).convert("RGB"), np.float32).transpose(2, 0, 1)
        boxes, scores, classes = session.run(
            ["boxes", "scores", "classes"], {"images": pixels[None]}
        )
        expected = model(image, threshold=0.2)
        taken = scores[0] >= 0.2
        assert [names[i] for i in classes[0, taken]] == [names[i] for i in expected.classes]
        np.testing.assert_allclose(boxes[0, taken], expected.boxes, atol=0.01)
        np.testing.assert_allclose(scores[0, taken], expected.scores, atol=1e-4)
        found += taken.sum()
    assert found > 20


def test_a_saved_program_runs_at_other_sizes(tmp_path: Path) -> None:
    model = build("atss")
    path = tmp_path / "model.pt2"
    with pytest.raises(
        UserError, match=r"traced at 96 x 128 does not run at 160 x 192 .*--fixed-size"
    ):
        export_program(
            model,
            path,
            format="torch-export",
            images=[*photos(1), *photos(1, 160, 192)],
            dynamic=True,
        )
    exported = export_program(model, path, format="torch-export", images=photos(1, 160, 192), dynamic=True, batch=None, notes={"class_names": '["a"]'})  # fmt: skip
    assert exported.inputs == ["images (N, 3, H, W) float32, pixels 0 to 255"]
    assert [line.split(":")[0] for line in exported.lines[1:]] == ["runs where comer_d2 is installed", "3 images of 160 x 192", "160 x 192"]  # fmt: skip
    carried = {"class_names": ""}
    program = torch.export.load(path, extra_files=carried).module()
    assert carried == {"class_names": '["a"]'}
    images = photos(4, 192, 160)
    with torch.no_grad():
        found = program(torch.stack(images))
        expected = model([{"image": image, "height": 192, "width": 160} for image in images])
    for i, of_image in enumerate(expected):
        instances = of_image["instances"]
        count = len(instances)
        assert count > 0
        torch.testing.assert_close(found["boxes"][i, :count], instances.pred_boxes.tensor)
        torch.testing.assert_close(found["scores"][i, :count], instances.scores)


def test_photos_of_any_size(tmp_path: Path) -> None:
    """Resized inside the program; the boxes are of the photo."""
    path = tmp_path / "new" / "model.pt2"
    exported = export_program(
        build("faster_rcnn"),
        path,
        format="torch-export",
        images=[*photos(1, 301, 200), *photos(1, 40, 90), *photos(1, 5, 700)],
        dynamic=False,
        fit=(96, 128),
    )
    assert exported.inputs == ["images (1, 3, H, W) float32, pixels 0 to 255"]
    (photo,) = photos(1, 450, 300)
    found = torch.export.load(path).module()(photo[None])
    taken = found["classes"][0] >= 0
    assert taken.sum() > 5
    corners = found["boxes"][0, taken].amax(0)
    assert 64 < corners[2] <= 300 and 96 < corners[3] <= 450


@pytest.mark.slow
def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    exported = export_program(build("gfl"), path, format="aoti", images=photos(2, 160, 192), dynamic=False)  # fmt: skip
    assert "detections, boxes within" in exported.lines[-1]


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler.*install g\+\+"):
        check_target(tmp_path / "m.pt2", "aoti")


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_without_a_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{name} is missing: pip install 'comer_d2\[export\]'"):
        check_target(tmp_path / "m.onnx", "onnx")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("model.pt", "--format", "torch-export"), "model.pt: name a file of --format torch-export with .pt2"),
        (("model.pt2", "--format", "onnx"), "with .onnx at the end"),
        (("model.onnx", "--format", "onnx", "--resize"), "--fixed-size H W"),
        (("model.onnx", "--format", "onnx", "--fixed-size", "0", "64"), "--fixed-size 0 64: positive"),
    ],
)  # fmt: skip
def test_wrong_arguments(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "no_run", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").mkdir()
    with pytest.raises(UserError, match=r"model\.pt2 is a folder"):
        check_target(tmp_path / "model.pt2", "torch-export")


def test_a_file_that_computes_something_else_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comer_d2.d2.export.compare.PIXELS", 0.0)
    monkeypatch.setattr(
        "comer_d2.d2.export.program.WRITERS",
        {"torch-export": Writer(".pt2", lambda: None, lambda program, path, *_: (lambda x: [t + 1 for t in program.module()(x).values()], []))},
    )  # fmt: skip
    path = tmp_path / "model.pt2"
    path.write_text("before")
    with pytest.raises(UserError, match="computes something else than the model, at 96 x 128"):
        export_program(build("atss"), path, format="torch-export", images=photos(1), dynamic=False)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


def test_what_is_traced_is_compared_with_the_model_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that does what the traced module does is wrong where this is not what the model does."""

    def careless(*args: Any, **kwargs: Any) -> Detections:
        return detect(*args, **{**kwargs, "nms_threshold": 1.0})

    monkeypatch.setattr("comer_d2.d2.export.detectors.detect", careless)
    with pytest.raises(UserError, match="computes something else than the model, at 96 x 128"):
        export_program(build("atss"), tmp_path / "m.pt2", format="torch-export", images=photos(1), dynamic=False)  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_what_does_not_export_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Linear cannot be exported"):
        export_program(nn.Linear(1, 1).eval(), tmp_path / "m.onnx", format="onnx", images=photos(1), dynamic=True)  # fmt: skip


def test_upernet_at_any_size(tmp_path: Path) -> None:
    cfg = LazyConfig.load(str(ROOT / "tests" / "d2" / "tiny_upernet.py"))
    cfg.dataset.num_classes, cfg.model.views = 3, None
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    exported = export_program(
        model,
        tmp_path / "m.pt2",
        format="torch-export",
        images=[*photos(1), *photos(1, 160, 96)],
        dynamic=True,
        batch=None,
    )
    assert exported.outputs == ["sem_seg"]
    images = photos(2, 224, 288)
    with torch.no_grad():
        expected = model([{"image": image} for image in images])
        found = torch.export.load(exported.path).module()(torch.stack(images))["sem_seg"]
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours["sem_seg"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "size, fit, message",
    [
        ((32, 5000), None, "5000 pixels along a side .* takes 4096: use --fixed-size"),
        ((100, 96), None, "100 x 96 pixels: sides must be multiples of 32"),
        ((50, 50), (100, 96), "100 x 96 pixels: sides must be multiples of 32"),
    ],
)
def test_sizes_that_do_not_export(
    size: tuple[int, int], fit: tuple[int, int] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        export_program(build("atss"), tmp_path / "m.pt2", format="torch-export", images=photos(1, *size), dynamic=fit is None, fit=fit)  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_swin_has_one_size(tmp_path: Path) -> None:
    """At any size it would trace for more minutes than anybody waits."""
    model = build("atss")
    small = {"depths": [1] * 4, "embed_dim": 16, "num_heads": [1] * 4, "window_size": 4}
    model.backbone.bottom_up = TimmPyramid("swin_tiny_patch4_window7_224", arguments=small)
    with pytest.raises(UserError, match=r"swin_tiny_patch4_window7_224.* --fixed-size H W, with"):
        export_program(model, tmp_path / "m.pt2", format="torch-export", images=photos(1), dynamic=True)  # fmt: skip
    assert not list(tmp_path.iterdir())
