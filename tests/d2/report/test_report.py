"""The page of every kind of model, in a browser; its numbers are the evaluators'."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from comer_d2.__main__ import main
from comer_d2.d2.data.custom import resolve_dataset
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.report.build import RunReports
from tests.browser import open_page
from tests.d2.untrained import DETECTOR, PANOPTIC, SEMANTIC, write_digits, write_run


def evaluate(run: Path) -> str:
    assert main(["eval", str(run), "dataloader.test.num_workers=0"]) == 0
    return (run / "report" / "index.html").read_text(encoding="utf-8")


def table(page: str, title: str) -> list[list[str]]:
    """The rows of a table of the page."""
    part = page[page.index(f"<h3>{title}</h3>") :]
    part = part[: part.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", part, re.DOTALL)
    return [re.findall(r"<td>(.*?)</td>", row) for row in rows[1:]]


def test_detector(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", write_digits(tmp_path), DETECTOR)
    page = evaluate(run)
    results = json.loads((run / "evaluation.json").read_text())["results"]
    for task, title in (("bbox", "boxes"), ("segm", "masks")):
        rows = {row[0]: row[1:] for row in table(page, f"Average precision of {title}")}
        assert float(rows["all"][1]) == pytest.approx(results[task]["AP"], abs=0.05)
        for name, value in results[task].items():
            if name.startswith("AP-") and value is not None:
                assert float(rows[name[3:]][1]) == pytest.approx(value, abs=0.05)
    truth = json.loads((tmp_path / "digits" / "val.json").read_text())
    assert int(rows["all"][0]) == len(truth["annotations"])
    # What pycocotools reads.
    written = json.loads((run / "inference" / "coco_instances_results.json").read_text())
    assert written and "segmentation" in written[0]
    assert str(tmp_path) not in page

    with open_page((run / "report" / "index.html").as_uri(), width=390, height=844) as view:
        assert view.evaluate("document.documentElement.scrollWidth") <= 390
        cases = view.locator(".case")
        count = cases.count()
        assert count == 3
        view.get_by_role("button", name="missed").click()
        shown = cases.filter(visible=True).count()
        assert shown == view.locator(".case[data-kinds*=missed]").count()
        view.get_by_role("button", name="missed").click()
        assert cases.filter(visible=True).count() == count
        view.get_by_label("sort by").select_option("name")
        names = view.locator(".case").evaluate_all("all => all.map(c => c.dataset.name)")
        assert names == sorted(names)
        view.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        view.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth)")
        # Two to train on, and ground truth and prediction of each case.
        assert view.locator("img").count() == 2 + 2 * count


def test_semantic(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", write_digits(tmp_path), SEMANTIC)
    page = evaluate(run)
    results = json.loads((run / "evaluation.json").read_text())["results"]["sem_seg"]
    rows = table(page, "By class")
    iou = {row[0]: row[3] for row in rows}
    for name, value in iou.items():
        expected = results[f"IoU-{name}"]
        assert (value == "–") if expected is None else float(value) == pytest.approx(expected, abs=0.06)  # fmt: skip
    known = [float(value) for value in iou.values() if value != "–"]
    assert np.mean(known) == pytest.approx(results["mIoU"], abs=0.06)
    assert sum(int(row[1]) for row in rows) == 3 * 128 * 128


def test_panoptic(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", write_digits(tmp_path), PANOPTIC)
    page = evaluate(run)
    results = json.loads((run / "evaluation.json").read_text())["results"]["panoptic_seg"]
    rows = table(page, "By class")
    for name, _, quality, *_ in rows:
        assert float(quality) == pytest.approx(results[f"PQ-{name}"], abs=0.06)
    assert "<h2>Segments</h2>" in page


def test_a_run_reads_its_training_set_once_for_all_its_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", write_digits(tmp_path), DETECTOR)
    (run / "evaluation.json").write_text('{"results": {}}')
    (run / "inference").mkdir()
    (run / "inference" / "coco_instances_results.json").write_text("[]")
    cfg = load_config(str(run / "config.yaml"), [f"train.output_dir={run}"])
    resolve_dataset(cfg)
    read: list[str] = []
    get = DatasetCatalog.get
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: read.append(name) or get(name))
    reports = RunReports()
    first, second = (reports.write(cfg).read_text(encoding="utf-8") for _ in range(2))
    assert read.count(f"{cfg.dataset.name}_train") == 1
    assert second.count("augmented training image") == first.count("augmented training image") == 2


def test_a_run_without_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", write_digits(tmp_path), DETECTOR)
    assert main(["report", str(run)]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
