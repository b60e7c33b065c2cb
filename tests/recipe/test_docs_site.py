"""The documentation as a site: built with warnings as errors, whole, and without a request to anywhere else."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from conftest import REPOSITORY

import sat_vg.backbone_finetuning as package
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.models import adapters
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES
from sat_vg.backbone_finetuning.training.phases import STRATEGIES
from sat_vg.cli import COMMANDS

pytestmark = pytest.mark.recipe

DOCS = REPOSITORY / "docs"
OUTSIDE = {"security.md", "contributing.md", "changes.md"}  # docs/hooks.py makes these of files outside docs/
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
WRONG_DOCSTRING = '''
def area(side: int) -> int:
    """Of a square.

    Args:
        width: of it.
    """
    return side**2
'''
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


class Page(HTMLParser):
    """What a page of the site links to, fetches, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.anchors, self.links, self.fetched = path, set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif values.get(FETCHED.get(tag)):
            self.fetched.append(values[FETCHED[tag]])
        assert "mermaid" not in (values.get("class") or ""), f"{self.path}: diagrams are drawn by a script from a CDN"


def mkdocs_build(target: Path, folder: Path = REPOSITORY) -> subprocess.CompletedProcess:
    # Without --quiet, which would keep warnings from being counted.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=quiet)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("docs") / "site"
    done = mkdocs_build(target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def pages(site):
    found = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    assert len(found) > 25
    return found


def titles_and_pages(nav):
    """``(title, page)`` of every entry of the nav; the title is None where the page's own is taken."""
    for entry in nav:
        if isinstance(entry, str):
            yield None, entry
        else:
            for title, value in entry.items():
                yield from [(title, value)] if isinstance(value, str) else titles_and_pages(value)


def test_every_page_is_in_the_nav_once():
    listed = [page for _, page in titles_and_pages(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"])]
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | OUTSIDE
    assert len(there) > 20
    missing, gone = sorted(there - set(listed)), sorted(set(listed) - there)
    assert not missing, f"mkdocs.yml: nav has no place for {missing}; add a line such as '- Title: {missing[0]}'"
    assert not gone, f"mkdocs.yml: nav names {gone}, which are not in docs/; remove them"
    assert len(listed) == len(set(listed)), "mkdocs.yml: nav names a page twice"


def test_every_decision_is_in_their_list():
    text = (DOCS / "adr/index.md").read_text()
    decisions = sorted(DOCS.glob("adr/0*.md"))
    assert len(decisions) >= 10
    for path in decisions:
        assert f"]({path.name})" in text, f"docs/adr/index.md does not list {path.name}"


def test_no_link_is_dead(site, pages):
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":  # that one links from the root of a server
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.relative_to(site)} links to {link}, which is not there"
            if parts.fragment and target in pages:
                checked += 1
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.relative_to(site)}: no place {link}"
    assert checked > 100


def test_no_page_names_anything_from_elsewhere(site, pages):
    for path, page in pages.items():
        assert len(page.fetched) >= 4
        for link in page.fetched:
            parts = urlsplit(link)
            assert not parts.scheme and not parts.netloc, f"{path.relative_to(site)} fetches {link}"
            if path.name != "404.html":
                assert (path.parent / parts.path).is_file(), f"{path.relative_to(site)}: no {link}"
    styles = list(site.rglob("*.css"))
    assert len(styles) >= 3
    for style in styles:
        for link in re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')]+)", style.read_text(encoding="utf-8")):
            assert link.startswith(("data:", "#")) or (style.parent / link).is_file(), f"{style.name}: {link}"


def test_a_browser_reads_it_from_a_folder_and_asks_nobody(site):
    """Scripts decide at run time what they fetch; and the search has to do without a server."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    requests, errors = [], []
    with sync_playwright() as player:
        chromium = player.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in ("index", "extractor", "api/config"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, f"{name} is wider than a telephone"
        page.set_viewport_size({"width": 1280, "height": 900})
        page.locator("[data-md-component=search-query]").click()
        page.keyboard.type("layer decay")
        first = page.locator(".md-search-result__item").first
        first.wait_for(timeout=15_000)
        assert "layer_decay" in first.inner_text()
        chromium.close()
    assert len(requests) > 8
    assert not [url for url in requests if not url.startswith(("file:", "data:", "blob:", "about:"))]
    assert not errors


def test_the_reference_holds_every_public_name(site):
    anchors = set().union(*(Page(path).anchors for path in (site / "api").glob("*.html")))
    public = [getattr(package, name) for name in package.__all__]
    public += [getattr(adapters, name) for name in adapters.__all__]
    assert len(public) > 20
    for value in public:
        assert f"{value.__module__}.{value.__qualname__}" in anchors, f"docs/api has no {value.__qualname__}"
    config = f"{FinetuneConfig.__module__}.FinetuneConfig"
    for field in FinetuneConfig.field_names():
        assert f"{config}.{field}" in anchors, f"FinetuneConfig.{field} has no text below it"


def test_markdown_is_read_as_forges_read_it(pages, site):
    for name, items in (("0009-heads-and-inputs-that-differ-from-torchvisions", 6), ("0010-what-a-phase-may-say", 3)):
        assert (DOCS / f"adr/{name}.md").read_text().count("\n- ") == items  # without an empty line before them
        html = (site / f"adr/{name}.html").read_text()
        assert html[html.index("<article") : html.index("</article")].count("<li>") == items
    for path in pages:
        prose = re.sub(r"<pre.*?</pre>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        unread = re.search(r"^(?:<p>)?(?:\|[ -]|```|[-*] ).*$", prose, re.MULTILINE)
        assert unread is None, f"{path.relative_to(site)}: {unread[0]}"


# Each has a line of its own that a strict build counts; what cannot be found at all ends it there and then.
WARNED_OF = {
    "[x](none.md)": "a link 'none.md', but the target is not found",
    "[x](../setup.py)": "'../setup.py'",
    "[x](concepts.md#no-such-place)": "does not contain an anchor '#no-such-place'",
    "::: module_of_the_test": "'width' does not appear in the function signature",
}
NOT_FOUND = {"::: sat_vg.backbone_finetuning.no_such_thing": "no_such_thing"}


@pytest.mark.parametrize(("mistakes", "level"), [(WARNED_OF, "WARNING"), (NOT_FOUND, "ERROR")])
def test_mistakes_end_the_build(mistakes, level, tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("hooks.py", "iframe-worker.js", "site.css", "concepts.md", "runs.md"):
        shutil.copy(DOCS / name, tmp_path / "docs" / name)
    shutil.copytree(DOCS / "adr", tmp_path / "docs/adr")
    for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "sat_vg"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    settings = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    settings["nav"] = ["index.md", "concepts.md", "runs.md"]
    settings["validation"]["nav"]["omitted_files"] = "ignore"
    (tmp_path / "mkdocs.yml").write_text(yaml.dump(settings))
    (tmp_path / "module_of_the_test.py").write_text(WRONG_DOCSTRING)
    text = "\n\n".join(mistakes)
    (tmp_path / "docs/index.md").write_text(f"# Sound\n\n[x](concepts.md#stage)\n\n{text}\n")
    done = mkdocs_build(tmp_path / "site", tmp_path)
    assert done.returncode == 1
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(level)]
    for says in mistakes.values():
        assert any(says in line for line in said), (says, said)


def test_the_makefile_builds_it_so():
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "$(PY) -m mkdocs build --strict\n" in makefile
    assert "/site/" in (REPOSITORY / ".gitignore").read_text().split()


def fences(page):
    found = FENCE.findall((DOCS / page).read_text())
    assert found
    return found


def test_the_page_start_from_top_to_bottom(class_folders, tmp_path, monkeypatch, capfd):
    """Its commands and its Python, in order; the training at a size that is done in seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    quick = ["--pretrained", "false", "--image_size", "32", "--num_epochs", "1", "--warmup_epochs", "0"]
    names: dict[str, object] = {}
    commands = 0
    for language, body in fences("start.md"):
        if language == "python":
            exec(compile(body, "start.md", "exec"), names)
        elif "sat-vg " in body:
            _, command, *flags = shlex.split(body.replace("\\\n", " "))
            flags = [str(class_folders / "train") if flag == "DIR" else flag for flag in flags]
            flags += [*quick, "--num_workers", "0"] if command == "train" else []
            code = import_module(COMMANDS[command][0]).main(flags, f"sat-vg {command}")
            assert code == 0, capfd.readouterr()
            commands += 1
    assert commands == 4
    assert isinstance(names["model"], torch.nn.Module)
    for left in ("checkpoints/full/best_model.pt", "logs/finetune/training_images.png", "evaluation/report.html"):
        assert (tmp_path / left).is_file(), left


PAGES_WITH_PYTHON = [
    path for path in (DOCS / "index.md", *sorted(DOCS.glob("api/*.md"))) if "```" in path.read_text()
]


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_the_python_on_other_pages_runs(page, tmp_path, monkeypatch):
    snippets = [body for language, body in fences(page) if language == "python"]
    assert snippets
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BACKBONES, "patches", None)  # what the pages add goes again
    monkeypatch.setitem(STRATEGIES, "halves", None)
    FineTuneModel("resnet18", 3, pretrained=False, image_size=32).save_checkpoint(
        tmp_path / "checkpoints/quickstart/best_model.pt"
    )
    names: dict[str, object] = {"images_uint8": torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8)}
    for body in snippets:
        exec(compile(body, page, "exec"), names)
