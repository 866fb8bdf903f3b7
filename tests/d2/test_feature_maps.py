"""Figure 6: maps of a ViT-CoMer and of a plain ViT, drawn by one command."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from comer_d2 import load
from comer_d2.d2.image_input import as_rgb
from tests.d2.runs import ROOT
from tests.d2.untrained import DETECTOR, write_digits, write_run

SCRIPT = ROOT / "tools" / "feature_maps.py"


def test_both_backbones_side_by_side(tmp_path: Path) -> None:
    data = write_digits(tmp_path)
    runs = [
        write_run(tmp_path / name, data, (config, []))
        for name, config in (("comer", DETECTOR[0]), ("vit", "mask_rcnn_vit_digits.py"))
    ]
    photo = tmp_path / "photo.png"
    Image.open(data / "digits" / "val" / "00001.png").crop((0, 0, 120, 90)).save(photo)
    sheet = tmp_path / "maps.png"
    subprocess.run([sys.executable, SCRIPT, photo, *runs, "--output", sheet], check=True)
    # A photo and four maps of 360 pixels in a row, two rows of 270.
    assert Image.open(sheet).width > 5 * 360
    assert Image.open(sheet).height > 2 * 270

    spec = importlib.util.spec_from_file_location("feature_maps", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model = load(runs[0])
    maps = script.feature_maps(model, as_rgb(photo))
    height, width = model.prepare(as_rgb(photo)).shape[1:]
    assert [m.shape[1:] for m in maps] == [
        (-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)
    ]
    with torch.no_grad():
        image = model.model.preprocess_image([{"image": model.prepare(as_rgb(photo))}])
        expected = model.model.backbone.bottom_up(image.tensor)["res4"][0]
    torch.testing.assert_close(maps[2], expected[:, : maps[2].shape[1], : maps[2].shape[2]])


def test_colours_are_of_one_scale() -> None:
    spec = importlib.util.spec_from_file_location("feature_maps", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    torch.manual_seed(0)
    large, small = torch.randn(8, 20, 30), 0.1 * torch.randn(8, 10, 15)
    first, second = script.colours([large, small])
    assert first.shape == (20, 30, 3) and first.dtype == np.uint8
    assert first.std() > 4 * second.std()
