"""The page to try a model, as a visitor uses it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comer_d2 import load
from comer_d2.d2.commands.model import validation_images
from comer_d2.d2.demo import build_demo, table_of
from tests.browser import open_page
from tests.d2.untrained import PANOPTIC, write_digits, write_run


@pytest.mark.slow
def test_a_photo_is_dropped_and_the_threshold_moved(
    learnt_run: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(digits))
    model = load(learnt_run)
    examples = validation_images(model, 6)
    assert len(examples) == 6
    found = {path: table_of(model(path, threshold=0.2), "instance") for path in examples}
    photo = max(examples, key=lambda path: len(found[path]))
    names = [name for name, _, _ in found[photo]]
    assert names
    page = build_demo(model, "my model", examples)
    folder = str(examples[0].parent)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, allowed_paths=[folder])
    try:
        with open_page(url, width=390, height=844) as view:
            view.get_by_role("heading", name="my model").wait_for()
            view.get_by_role("spinbutton").fill("0.2")
            view.locator("input[type=file]").first.set_input_files(photo)
            view.get_by_text("s on cpu for 128 x 128 pixels").wait_for()
            cells = view.get_by_role("gridcell")
            cells.first.wait_for()
            shown = [text.strip() for text in cells.all_inner_texts()]
            assert shown[: 3 * len(names) : 3] == names
            link = view.locator("a[download='found.png']").first
            picture = view.request.get(link.get_attribute("href")).body()
            assert Image.open(io.BytesIO(picture)).size == (512, 512)
            view.get_by_role("spinbutton").fill("1")
            view.get_by_role("button", name="Find").click()
            view.wait_for_function("document.querySelectorAll('[role=gridcell]').length <= 3")
            Image.fromarray(np.full((32, 32), 300, np.uint16)).save(tmp_path / "deep.png")
            view.get_by_label("Remove Image").or_(view.get_by_label("Clear")).first.click()
            view.locator("input[type=file]").first.set_input_files(tmp_path / "deep.png")
            view.get_by_text("more than 8 bits a channel").first.wait_for()
            assert view.evaluate("document.documentElement.scrollWidth") <= 390
    finally:
        page.close()


def test_tables_of_every_task(tmp_path: Path) -> None:
    model = load(write_run(tmp_path / "run", write_digits(tmp_path), PANOPTIC))
    assert model.tasks == ("panoptic", "instance", "semantic")
    result = model(tmp_path / "digits" / "val" / "00001.png", threshold=0.0)
    for task in model.tasks:
        rows = table_of(result, task)
        assert json.dumps(rows)
        scores = [score for _, score, _ in rows if score is not None]
        assert scores == [round(score, 3) for score in scores]
        names = {name for name, _, _ in rows}
        assert names <= set(model.class_names)
    assert sum(pixels for _, _, pixels in table_of(result, "semantic")) == 128 * 128
