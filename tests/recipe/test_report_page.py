"""The pages of evaluate and compare in a real browser: their contents, and that nothing is run or fetched."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import write_image

from sat_vg.backbone_finetuning.commands.evaluate import cli as evaluate
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.reports.comparison_page import as_html
from sat_vg.backbone_finetuning.reports.comparison_report import Comparison, Failure, Row

pytestmark = pytest.mark.recipe

HOSTILE = ("<script>alert(1)<", "<img src=x onerror=alert(1)>", "=1+1", "new\nline \x1b[31m")
NAMES = tuple(sorted((*HOSTILE, "a rather long name of a class that nobody can fit into a column", "sea")))


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed, so the report cannot be opened in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results for classes with hostile names, of a model that is mostly wrong."""
    root = tmp_path_factory.mktemp("page")
    for number, name in enumerate(NAMES):
        for split in ("train", "val"):
            for index in range(3):
                colour = (40 * number, 220 - 30 * number, 90)
                write_image(root / "images" / split / name / f"{index}.png", colour, 100 * number + index)
    model = FineTuneModel("resnet18", len(NAMES), pretrained=False, image_size=32, class_names=NAMES)
    config = {
        "dataset_path": str(root / "images"),
        "log_dir": "</dd><script>alert(2)</script>",
        "on_duplicates": "warn",
    }
    model.save_checkpoint(root / "best_model.pt", config=config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAT_VG_CACHE", str(root / "cache"))
        assert evaluate.main([str(root / "best_model.pt"), "--out", str(root / "out")]) == 0
    return root / "out"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The page of a comparison in which every text is hostile."""
    text = " ".join(HOSTILE)
    costs = {"training_seconds": (60.0, 61.0), "peak_gib": (1.0, None), "parameters": 10, "flops": 10**9}
    rows = [
        Row(text, strategy, 64, (0, 1), accuracies, accuracies, images_per_second=9.0, **costs)
        for strategy, accuracies in (("full", (0.9, 0.92)), (text, (0.7, 0.8)))
    ]
    failures, settings = (Failure(text, text, text),), ((text, text),)
    content = Comparison(tuple(rows), 100, notes=(text,), failures=failures, command=text, settings=settings)
    path = tmp_path_factory.mktemp("comparison") / "comparison.html"
    path.write_text(as_html(content))
    return path


@pytest.fixture
def opened(browser, folder):
    """Opens a page, by default the report; afterwards there may be no complaints of the browser and no requests."""
    contexts, complaints, requests, own = [], [], [], []

    def open_page(width=1200, scheme="light", path=folder / "report.html"):
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        own.append(path.as_uri())
        page.goto(own[-1])
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert own
    assert set(own) <= set(requests)
    assert [url for url in requests if url not in own and not url.startswith("data:image/")] == []


def test_the_matrix_has_the_right_cells(opened, folder):
    found = json.loads((folder / "evaluation.json").read_text())
    page = opened()
    table = page.locator("#matrix")
    shown = table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => cell.innerText))"
    )
    assert shown == [
        [f"{100 * share:.0f}" if share else "" for share in row] for row in found["confusion_normalised"]
    ]
    page.get_by_text("images", exact=True).first.scroll_into_view_if_needed()
    page.locator("label[for=as-counts]").click()
    counts = table.locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => Number(cell.innerText)))"
    )
    assert counts == found["confusion"]
    assert sum(map(sum, counts)) == found["images"] == 18


def test_names_are_text(opened):
    page = opened()
    assert page.evaluate("document.scripts.length") == 0
    heads = page.locator("#matrix tbody th").all_inner_texts()
    assert heads == [name.replace("\n", "\\n").replace("\x1b", "\\x1b") for name in NAMES]
    assert "<script>alert(1)<" in heads
    assert set(page.locator("#classes tbody th").all_inner_texts()) == set(heads)
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("text=</dd><script>alert(2)</script>").count() >= 1


def test_the_policy_lets_nothing_run_or_be_fetched(browser, folder, tmp_path):
    text = (folder / "report.html").read_text()
    changed = tmp_path / "changed.html"
    extra = "<script>document.title='ran'</script><img src='other.png'><p id=p style='color:red' onclick='x()'>p</p>"
    changed.write_text(text.replace("</main>", f"{extra}</main>"))
    (tmp_path / "other.png").write_bytes(b"")
    page = browser.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(changed.as_uri())
    assert page.title() != "ran"
    assert len([text for text in refused if "Content Security Policy" in text]) >= 3
    page.close()


def test_a_phone_scrolls_the_matrix_and_not_the_page(opened):
    page = opened(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = page.locator(".box").evaluate_all("boxes => boxes.map(b => [b.scrollWidth, b.clientWidth])")
    assert len(boxes) == 4
    assert any(inner > outer for inner, outer in boxes)
    box = page.locator(".box", has=page.locator("#matrix"))
    box.evaluate("b => { b.scrollLeft = 200 }")
    left = [round(row.bounding_box()["x"]) for row in (box, page.locator("#matrix tbody th").first)]
    assert abs(left[0] - left[1]) <= 2  # the names stay in sight
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16


def test_the_comparison_on_a_phone(opened, comparison):
    page = opened(width=390, path=comparison)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.scripts.length") == 0
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("img.chart").evaluate("i => i.complete && i.naturalWidth") > 400
    names = page.locator("#ranking tbody th").all_inner_texts()
    assert names[0].startswith("1. <script>alert(1)< <img src=x onerror=alert(1)> =1+1 new\\nline \\x1b[31m")


def test_the_ranking_with_all_of_its_columns_fits_a_small_window(opened, tmp_path):
    accuracies = (0.971, 0.962, 0.98)
    rows = [
        Row(
            "mobilenet_v3_large", f"linear_probe{number}", 224, (0, 1, 2), accuracies, accuracies,
            training_seconds=(1060.2, 1075.5, 1100.1), peak_gib=(12.34,) * 3, parameters=118 * 10**6,
            flops=36_100_000_000, images_per_second=1234.0, top_5=(0.991, 0.993, 0.992), train_losses=(0.123,) * 3,
            val_losses=(0.234,) * 3, gpu_gib=(23.45,) * 3,
        )
        for number in range(14)
    ]  # fmt: skip
    (tmp_path / "comparison.html").write_text(as_html(Comparison(tuple(rows), 1000)))
    page = opened(width=1100, path=tmp_path / "comparison.html")
    box = page.locator("#ranking .box")
    assert box.evaluate("b => b.scrollWidth - b.clientWidth") == 0
    cells = page.locator("#ranking tbody tr").first.locator("td").all_inner_texts()
    assert cells[1:4] == ["97.10\n± 0.90", "–", ", ".join(map(str, range(2, 15)))]


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_colour_scheme(opened, scheme, is_dark):
    page = opened(scheme=scheme)
    brightness = []
    for name in ("background-color", "color"):
        found = page.locator("body").evaluate(f"e => getComputedStyle(e)['{name}']")
        brightness.append(sum(map(int, found[4:-1].split(","))) / 765)
    paper, ink = brightness
    assert (paper < 0.2, ink > 0.8) == (is_dark, is_dark)
    assert (paper > 0.9, ink < 0.2) == (not is_dark, not is_dark)
    assert ("invert" in page.locator(".chart").first.evaluate("e => getComputedStyle(e).filter")) == is_dark


def test_mistakes_are_shown_with_their_heat_maps(opened, folder):
    with (folder / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    wrong = sum(line["correct"] == "false" for line in table)
    assert wrong >= 12
    page = opened()
    figures = page.locator(".mistakes figure")
    assert figures.count() == 12
    sizes = figures.locator("img").evaluate_all("all => all.map(i => [i.naturalWidth, i.naturalHeight, i.complete])")
    assert sizes == [[32, 32, True]] * 24
    assert Path(figures.first.locator("code").inner_text()).parts[0] == "val"
    chart = page.locator("#calibration .chart")
    assert chart.evaluate("i => i.complete && i.naturalWidth") > 300
    page.get_by_text("the bins as a table").click()
    assert page.locator("#calibration tbody tr").count() >= 1
    assert "There are no curves" in page.locator("#training").inner_text()
