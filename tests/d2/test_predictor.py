"""Prediction from Python: what is taken, what is refused, and that results are those of the test loader."""

import json
import shutil
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import supervision
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from PIL import Image

from comer_d2 import load
from comer_d2.d2.comparison import compare
from comer_d2.d2.data.custom import resolve_dataset
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.errors import UserError
from comer_d2.d2.predictor import Predictor, class_names_of
from comer_d2.d2.results import Result
from comer_d2.d2.visualization.drawing import COLORS
from tests.d2.runs import ROOT
from tests.d2.untrained import DETECTOR, PANOPTIC, SEMANTIC, write_digits, write_run

EVERYTHING = {"threshold": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, and the run of an untrained detector in run/."""
    folder = write_digits(tmp_path_factory.mktemp("predictor"))
    write_run(folder / "run", folder, DETECTOR)
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return load(folder / "run")


@pytest.fixture(scope="module")
def photo(folder: Path) -> Path:
    return folder / "digits" / "val" / "00001.png"


def assert_same(a: Result, b: Result) -> None:
    assert len(a.boxes) == len(b.boxes) > 0
    for name in ("boxes", "scores", "classes", "masks"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_plain_fields(predictor: Predictor, photo: Path) -> None:
    result = predictor(photo, **EVERYTHING)
    count = len(result)
    assert count > 0
    assert result.boxes.shape == (count, 4) and result.boxes.dtype == np.float32
    assert result.masks.shape == (count, 128, 128) and result.masks.dtype == bool
    assert result.classes.dtype == np.int64 and result.scores.dtype == np.float32
    assert (np.diff(result.scores) <= 0).all()
    assert list(result.class_names) == list("0123456789")
    assert result.file_name == str(photo)
    assert result.label_map is None and result.segments is None


def test_agrees_with_the_model_on_the_test_loader(predictor: Predictor, folder: Path) -> None:
    cfg = load_config(str(folder / "run" / "config.yaml"))
    resolve_dataset(cfg)
    inputs = next(iter(instantiate(cfg.dataloader.test)))
    with torch.no_grad():
        expected = predictor.model(inputs)[0]["instances"]
    found = predictor(inputs[0]["file_name"], **EVERYTHING)
    np.testing.assert_array_equal(found.boxes, expected.pred_boxes.tensor.numpy())
    np.testing.assert_array_equal(found.scores, expected.scores.numpy())


@pytest.mark.parametrize(
    "given",
    [
        lambda rgb: rgb,
        lambda rgb: Image.fromarray(rgb),
        lambda rgb: rgb.astype(np.float64) / 255,
        lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1),
        lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1) / 255,
        lambda rgb: np.dstack([rgb, np.full(rgb.shape[:2], 7, np.uint8)]),
        lambda rgb: Image.fromarray(rgb).convert("RGBA"),
        lambda rgb: rgb[:, ::-1][:, ::-1],  # of negative strides
    ],
    ids=["array", "pillow", "float", "tensor", "float tensor", "rgba", "pillow rgba", "view"],
)
def test_every_kind_of_image_gives_what_the_file_gives(
    predictor: Predictor, photo: Path, given
) -> None:
    rgb = np.array(Image.open(photo).convert("RGB"))
    found = predictor(given(rgb), **EVERYTHING)
    assert_same(found, predictor(photo, **EVERYTHING))
    assert found.image.flags.writeable


@pytest.mark.parametrize(
    "form", ["array", "one channel", "file", "pillow", "palette", "premultiplied"]
)
def test_grey_is_three_equal_channels(
    predictor: Predictor, photo: Path, tmp_path: Path, form: str
) -> None:
    grey = Image.open(photo).convert("L")
    grey.save(tmp_path / "grey.png")
    given = {
        "array": np.asarray(grey),
        "one channel": np.asarray(grey)[:, :, None],
        "file": tmp_path / "grey.png",
        "pillow": grey,
        "palette": grey.convert("P"),
        "premultiplied": grey.convert("LA").convert("La"),
    }[form]
    expected = predictor(np.dstack([np.asarray(grey)] * 3), **EVERYTHING)
    assert_same(predictor(given, **EVERYTHING), expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((8, 8), 40000, np.uint16), "not uint16"),
        (np.zeros((8, 8, 3), np.int64), "not int64"),
        (np.zeros((8, 8), bool), "not bool"),
        (np.full((8, 8, 3), 200.0), "from 0 to 1, this one 200 to 200"),
        (np.full((8, 8, 3), np.nan), "from 0 to 1, this one nan"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (torch.zeros(8, 8, 3), r"shape \(8, 8, 3\)"),
        (torch.zeros(2, 3, 8, 8), "several images as a list"),
        (Image.fromarray(np.full((8, 8), 40000, np.uint16)), "more than 8 bits"),
        (Image.fromarray(np.full((8, 8), 0.5, np.float32)), "more than 8 bits"),
        (7, "not int"),
    ],
)
def test_images_without_one_meaning_are_refused(
    predictor: Predictor, image: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predictor(image)


def test_16_bits_in_a_file_are_no_white_image(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png.*more than 8 bits"):
        predictor(tmp_path / "deep.png")


def test_missing_and_broken_files(predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes(photo.read_bytes()[:2000])
    for name in ("nowhere.png", "text.png", "half.png"):
        with pytest.raises(UserError, match=rf"{name}.*(cannot be read|no such file)"):
            predictor(tmp_path / name)


def test_an_image_that_is_too_large_for_pillow_says_what_to_do(
    predictor: Predictor, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 128 * 128 // 3)
    with pytest.raises(UserError, match=r"exceeds limit .* raise PIL\.Image\.MAX_IMAGE_PIXELS"):
        predictor(photo)


def test_a_photo_on_its_side_is_turned(predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    upright = Image.open(photo).crop((0, 0, 128, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side.png", exif=exif)
    result = predictor(tmp_path / "side.png")
    np.testing.assert_array_equal(result.image, np.asarray(upright))
    np.testing.assert_array_equal(predictor(Image.open(tmp_path / "side.png")).image, result.image)


def test_a_list_in_batches_gives_what_single_images_give(
    predictor: Predictor, folder: Path
) -> None:
    files = sorted((folder / "digits" / "val").iterdir())
    odd = np.asarray(Image.open(files[0]))[:100, :90]
    sizes = []
    hook = predictor.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        results = predictor([files[0], files[1], odd, files[2]], batch_size=4, **EVERYTHING)
    finally:
        hook.remove()
    assert sizes == [2, 1, 1]  # of other sizes: apart, in order
    for result, image in zip(results, [files[0], files[1], odd, files[2]], strict=True):
        single = predictor(image, **EVERYTHING)
        assert len(result) == len(single)
        np.testing.assert_allclose(result.scores, single.scores, atol=1e-5)
    assert predictor([]) == []
    with pytest.raises(UserError, match=r"batch_size=1.5: a whole number"):
        predictor(files, batch_size=1.5)


def test_thresholds(predictor: Predictor, photo: Path) -> None:
    everything = predictor(photo, **EVERYTHING)
    middle = float(np.median(everything.scores))
    assert len(predictor(photo, threshold=middle)) == (everything.scores >= middle).sum()
    (label,) = everything.classes[:1].tolist()
    alone = predictor(photo, threshold={**dict.fromkeys("0123456789", 1.0), str(label): middle})
    assert len(alone) == ((everything.classes == label) & (everything.scores >= middle)).sum() > 0


@pytest.mark.parametrize(
    ("threshold", "message"),
    [(30, "threshold 30: scores are from 0 to 1"), (-0.1, "-0.1"), (float("nan"), "nan"),
     ({"cat": 0.1}, "threshold for 'cat': the classes are '0', '1'"), ({"3": 30}, "threshold 30 of 3"),
     ({3: 0.3}, "threshold for 3: the classes are '0'"), ("0.5", "threshold '0.5': scores"),
     ({"3": None}, "threshold None of 3"), (True, "threshold True: scores")],
)  # fmt: skip
def test_thresholds_out_of_range(
    predictor: Predictor, photo: Path, threshold: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predictor(photo, threshold=threshold)


def test_bgr_model_gets_bgr(folder: Path) -> None:
    cfg = load_config(str(folder / "run" / "config.yaml"))
    cfg.dataloader.test.mapper.image_format = "BGR"
    predictor = Predictor(cfg, folder / "run" / "model_final.pth")
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = 200  # red
    assert predictor.prepare(image)[:, 0, 0].tolist() == [0, 0, 200]


def test_image_is_resized_as_the_test_data_and_boxes_come_back(folder: Path) -> None:
    cfg = load_config(str(folder / "run" / "config.yaml"))
    cfg.dataloader.test.mapper.augmentations = [
        L(T.ResizeShortestEdge)(short_edge_length=128, max_size=256)
    ]
    predictor = Predictor(cfg, folder / "run" / "model_final.pth")
    image = np.zeros((64, 100, 3), np.uint8)
    assert predictor.prepare(image).shape == (3, 128, 200)
    found = predictor(image, **EVERYTHING)
    assert found.masks.shape[1:] == (64, 100)
    assert found.boxes[:, 2].max() <= 100


def test_half_precision(folder: Path, photo: Path, predictor: Predictor) -> None:
    half = load(folder / "run", dtype="bfloat16")
    dtypes = set()
    layer = half.model.roi_heads.box_predictor.cls_score
    layer.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    found = half(photo, **EVERYTHING)
    assert dtypes == {torch.bfloat16}
    assert found.boxes.dtype == np.float32
    scores = torch.from_numpy(
        found.scores
    )  # not of bfloat16's 256 steps below 1, many of them equal
    assert (scores != scores.bfloat16().float()).any()
    assert found.scores[0] == pytest.approx(predictor(photo, **EVERYTHING).scores[0], abs=0.02)
    with pytest.raises(UserError, match="dtype='int8'"):
        load(folder / "run", dtype="int8")


def test_a_gpu_that_is_asked_for_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load(folder / "run").device == torch.device(
        "cpu"
    )  # the config's cuda, which nobody asked for
    with pytest.raises(UserError, match="device='cuda': no CUDA device here"):
        load(folder / "run", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="'cuda:2': the last CUDA device is cuda:1"):
        load(folder / "run", device="cuda:2")


def test_a_run_without_its_data(folder: Path, tmp_path: Path) -> None:
    """config.yaml on a machine without the dataset."""
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(folder), "/not/here"))
    assert load(run).class_names == list("0123456789")


def test_the_best_checkpoint_of_a_run_is_taken(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    state = torch.load(run / "model_final.pth", weights_only=True)
    torch.save({"model": {k: torch.zeros_like(v) for k, v in state["model"].items()}}, run / "model_best.pth")  # fmt: skip
    first = next(load(run).model.parameters())
    assert not first.any()
    assert next(load(run / "model_final.pth").model.parameters()).any()


def test_what_load_needs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere' does not exist"):
        load(tmp_path / "nowhere")
    shutil.copy(folder / "run" / "model_final.pth", tmp_path / "model_0000099.pth")
    with pytest.raises(UserError, match=r"holds none of model_best.*name one of model_0000099"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"'user/screws' does not exist.* or hf:user/screws"):
        load("user/screws")
    with pytest.raises(UserError, match=r"no config.yaml beside .*model_0000099"):
        load(tmp_path / "model_0000099.pth")
    weights = torch.load(tmp_path / "model_0000099.pth", weights_only=True)["model"]
    weights.pop("roi_heads.box_predictor.cls_score.weight")
    torch.save({"model": weights}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="cls_score"):
        load(tmp_path / "other.pth", config_file=folder / "run" / "config.yaml")


@pytest.mark.parametrize(("kind", "task"), [(PANOPTIC, "panoptic"), (SEMANTIC, "semantic")])
def test_semantic_and_panoptic_models(
    folder: Path, tmp_path: Path, kind: tuple[str, list[str]], task: str
) -> None:
    model = load(write_run(tmp_path / "run", folder, kind))
    photo = folder / "digits-panoptic" / "val" / "00001.png"
    result = model(photo, **EVERYTHING)
    assert result.task == task
    assert result.label_map.shape == (128, 128) and result.label_map.max() < 11
    page = model.class_names.index("page")
    assert result.stuff_classes == {page}
    if task == "panoptic":
        ids = [segment["id"] for segment in result.segments_info]
        assert len(result) == len(ids) > 0
        assert set(np.unique(result.segments)) - {0} == set(ids)
        # Things have to reach the threshold, stuff does not.
        best = max(s["score"] for s in result.segments_info if s["isthing"])
        few = model(photo, threshold=best)
        left = [s for s in result.segments_info if not s["isthing"] or s["score"] >= best]
        assert few.segments_info == left and len(left) < len(ids)
        kept = np.isin(result.segments, [segment["id"] for segment in left])
        np.testing.assert_array_equal(few.segments, np.where(kept, result.segments, 0))
    else:
        assert result.boxes is None
        with pytest.raises(UserError, match="no objects"):
            result.to_coco()
    assert result.draw(scale=2).size == (256, 256)
    with pytest.raises(UserError, match="nothing to draw"):
        result.draw(task="boxes")
    pairs = compare(model, "digits_panoptic_val", count=2, picture_side=192, progress=False)
    assert [picture.size for pair in pairs for picture in pair] == [(192, 192)] * 4


def test_comparison_shows_the_truth(predictor: Predictor, folder: Path) -> None:
    pairs = compare(predictor, "digits_val", count=2, picture_side=256, progress=False)
    assert len(pairs) == 2
    assert all(picture.size == (256, 256) for pair in pairs for picture in pair)
    content = json.loads((folder / "digits" / "val.json").read_text())
    present = {a["category_id"] - 1 for a in content["annotations"] if a["image_id"] == 1}
    pixels = {tuple(p) for p in np.asarray(pairs[0][0]).reshape(-1, 3).tolist()}
    for digit in present:
        assert COLORS[digit] in pixels


@pytest.mark.parametrize("kind", [DETECTOR, PANOPTIC, SEMANTIC], ids=lambda kind: kind[0])
def test_supervision_gets_the_same_objects(
    folder: Path, tmp_path: Path, kind: tuple[str, list[str]]
) -> None:
    result = load(write_run(tmp_path / "run", folder, kind))(
        folder / "digits-panoptic" / "val" / "00001.png", **EVERYTHING
    )
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.mask.shape == (len(detections), 128, 128)
    assert [result.class_names[i] for i in detections.class_id] == list(detections["class_name"])
    if result.boxes is not None:
        np.testing.assert_array_equal(detections.xyxy, result.boxes)
        np.testing.assert_array_equal(detections.mask, result.masks)
    else:
        assert detections.mask.sum(0).max() == 1  # segments do not overlap


@pytest.mark.parametrize(
    ("config", "count", "first"),
    [
        ("COCO/mask_rcnn_comer_t_1x.py", 80, "person"),
        ("COCO/dino_comer_s_12ep.py", 80, "person"),
        ("COCO/panoptic/mask2former_comer_s.py", 133, "person"),
        ("COCO/panoptic/eomt_s.py", 133, "person"),
        ("ADE20K/semantic/upernet_comer_t.py", 150, "wall"),
    ],
)
def test_class_names_of_public_data(config: str, count: int, first: str) -> None:
    cfg = load_config(str(ROOT / "configs" / config))
    names = class_names_of(cfg)
    assert (len(names), names[0].split(",")[0]) == (count, first)
    cfg.dataloader.test.dataset.names = "unknown"
    assert class_names_of(cfg) == [str(i) for i in range(count)]


def test_a_thin_image_does_not_end_the_batch(
    predictor: Predictor, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize = T.AugmentationList([T.ResizeShortestEdge(48, max_size=96)])
    monkeypatch.setattr(predictor, "augmentation", resize)
    thin = np.zeros((2, 3000, 3), np.uint8)
    with pytest.raises(UserError, match="an image of 3000 x 2 pixels cannot be resized"):
        predictor(thin)
    left_out: list = []
    results = predictor.stream([thin, photo], on_error=lambda image, error: left_out.append(error))
    assert [result.file_name for result in results] == [str(photo)]
    assert len(left_out) == 1


def test_a_frame_is_predicted_before_the_next_is_waited_for(
    predictor: Predictor, photo: Path
) -> None:
    asked: list[int] = []

    def camera():
        for number in range(2):
            asked.append(number)
            yield photo
        raise UserError("the camera has gone")

    results = predictor.stream(camera())
    next(results)
    assert asked == [0]
    next(results)  # the last one that was taken is not lost
    with pytest.raises(UserError, match="has gone"):
        next(results)
