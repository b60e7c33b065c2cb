"""``sat-vg serve`` in a real process: its answers, many requests at once, signals, and a real browser."""

import asyncio
import json
import os
import re
import shlex
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, write_image
from PIL import Image
from serving_here import GOOD, HEAD, NAMES, Server, form, save_model

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def checkpoint(root):
    return save_model(root / "best_model.pt")


@pytest.fixture(scope="module")
def images(root):
    for number in range(5):
        write_image(root / f"images/{number}.png", (40 * number, 90, 200 - 30 * number), number, size=40 + number)
    Image.open(root / "images/0.png").save(root / "images/5.jpg")
    Image.open(root / "images/1.png").convert("L").save(root / "images/6.tif")
    return root / "images"


@pytest.fixture(scope="module")
def server(root, checkpoint):
    running = Server(root / "server", checkpoint)
    yield running
    assert running.process.poll() is None, running.err.read_text()
    assert running.stop() == 0
    assert "ended; the requests that had begun were answered" in running.out.read_text()
    assert "Traceback" not in running.err.read_text(), running.err.read_text()


def test_answers_are_those_of_predict(server, images, checkpoint, command):
    code, out, err = command("predict", checkpoint, images, "--json", "--device", "cpu")
    assert code == 0, err
    expected = [json.loads(line) for line in out.splitlines()]
    files = [(Path(one["path"]).name, Path(one["path"]).read_bytes()) for one in expected]
    status, found = server.ask("POST", "/predict", form(*files))
    assert status == 200, found
    assert [one["path"] for one in found["predictions"]] == [name for name, _ in files]
    for mine, theirs in zip(found["predictions"], expected, strict=True):
        assert [one["class"] for one in mine["predictions"]] == [one["class"] for one in theirs["predictions"]]
        shares = [[one["probability"] for one in each["predictions"]] for each in (mine, theirs)]
        assert shares[0] == pytest.approx(shares[1], abs=2e-5)
    status, found = server.ask("POST", "/predict?top=1", form(files[0]))
    assert [one["class"] for one in found["predictions"][0]["predictions"]] == [
        expected[0]["predictions"][0]["class"]
    ]


def test_embeddings_are_the_vectors_that_the_classifier_sees(server, images, checkpoint):
    model = FineTuneModel.load_checkpoint(checkpoint).eval()
    paths = sorted(images.iterdir())
    status, found = server.ask("POST", "/embed", form(*((path.name, path.read_bytes()) for path in paths)))
    assert status == 200
    for path, one in zip(paths, found["embeddings"], strict=True):
        pixels = model.preprocessing.geometry()(decode_rgb(path))[None]
        vector = model.forward_pooled(model.preprocessing.normalise(pixels))[0]
        assert one["path"] == path.name
        assert one["embedding"] == pytest.approx(vector.tolist(), abs=1e-4)


def test_health(server):
    status, found = server.ask("GET", "/health")
    assert (status, found["status"], found["backbone"]) == (200, "ok", "squeezenet1_1")
    assert found["classes"] == list(NAMES)


def test_a_thousand_requests_at_once(server):
    body = form(GOOD)
    request = HEAD + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body

    async def one() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer.split(b" ", 2)[1]

    async def many() -> list[bytes]:
        return await asyncio.gather(*(one() for _ in range(1000)))

    found = asyncio.run(many())
    assert set(found) <= {b"200", b"503"}
    assert found.count(b"200") >= 64
    status, answer = server.ask("POST", "/predict", body)
    assert status == 200, answer


def test_batches_over_requests_give_each_its_own_answer(server, images):
    paths = sorted(images.iterdir())
    alone = [
        server.ask("POST", "/predict", form((path.name, path.read_bytes())))[1]["predictions"][0] for path in paths
    ]

    async def ask(path: Path) -> tuple[int, dict]:
        return await asyncio.to_thread(server.ask, "POST", "/predict", form((path.name, path.read_bytes())))

    async def all_of_them() -> list[tuple[int, dict]]:
        return await asyncio.gather(*(ask(path) for path in paths * 5))

    for (status, found), expected in zip(asyncio.run(all_of_them()), alone * 5, strict=True):
        assert status == 200
        assert found["predictions"][0]["path"] == expected["path"]
        mine, theirs = (
            {p["class"]: p["probability"] for p in one["predictions"]} for one in (found["predictions"][0], expected)
        )
        assert mine == pytest.approx(theirs, abs=2e-5)


def test_killed_in_a_request_the_next_start_is_clean(root, checkpoint):
    first = Server(root / "again", checkpoint)
    with socket.create_connection(("127.0.0.1", first.port)) as connection:
        connection.sendall(HEAD + b"Content-Length: 3000000\r\n\r\n" + form(("a.png", b"x" * 2 * 2**20))[:-20])
        time.sleep(0.3)
        first.process.kill()
        first.process.wait(10)
    left = [path for path in (root / "again").rglob("*") if path.is_file()]
    assert {path.name for path in left} == {"out.txt", "err.txt"}
    second = Server(root / "again", checkpoint)
    assert second.ask("POST", "/predict", form(GOOD))[0] == 200
    assert second.stop() == 0


def test_what_cannot_be_served(command, checkpoint, tmp_path):
    (tmp_path / "none.pt").write_bytes(b"no checkpoint")
    (tmp_path / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, message in (
            (["missing.pt"], "missing.pt"),
            ([tmp_path / "none.pt"], "none.pt"),
            ([tmp_path / "empty"], "holds no best_model.pt"),
            ([], "sat-vg serve needs MODEL"),
            ([checkpoint, "--port", taken.getsockname()[1]], "choose another --port"),
            ([checkpoint, "--port", 99999], "--port 99999: must be a whole number from 0 to 65535"),
            ([checkpoint, "--host", "no.such.host.invalid"], "cannot be listened at"),
            ([checkpoint, "--device", "gpu"], "device = 'gpu'"),
            ([checkpoint, "--timeout", 0], "--timeout 0"),
        ):
            code, _, err = command("serve", *arguments)
            assert code == 2, err
            assert message in err
            assert err.count("error: ") == 1


def test_a_browser_drops_an_image_and_reads_the_answer(server, images, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed, so the page cannot be opened in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    expected = server.ask("POST", "/predict", form(("0.png", (images / "0.png").read_bytes())))[1]["predictions"][0]
    drop = """(bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "0.png", {type: "image/png"}));
        const target = document.getElementById("drop");
        for (const kind of ["dragover", "drop"])
            target.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 800, "height": 700})
        complaints, requests = [], []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.evaluate(drop, list((images / "0.png").read_bytes()))
        page.wait_for_selector("figure table")
        rows = page.locator("figure tr").all()
        assert [row.locator("td").first.inner_text() for row in rows] == [p["class"] for p in expected["predictions"]]
        shown = [float(row.locator("td").last.inner_text().removesuffix(" %")) for row in rows]
        assert shown == pytest.approx([100 * p["probability"] for p in expected["predictions"]], abs=0.051)
        assert page.locator("figure img").evaluate("image => image.naturalWidth") == 40
        assert not complaints
        page.set_input_files("input[type=file]", [{"name": "b.png", "mimeType": "image/png", "buffer": b"no image"}])
        page.wait_for_selector(".error")
        assert "b.png: it cannot be read" in page.locator(".error").inner_text()
        assert page.locator("figure").count() == 2
        assert all(url.startswith((f"http://127.0.0.1:{server.port}/", "blob:", "data:")) for url in requests)
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        browser.close()
    keep = os.environ.get("SAT_VG_SCREENSHOTS")
    if keep:
        shutil.copy(tmp_path / "page.png", Path(keep) / "serve.png")


def test_the_shown_onnx_program_runs_without_torch(checkpoint, command, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    text = (REPOSITORY / "docs/serving.md").read_text()
    shown = next(line for line in text.splitlines() if line.startswith("sat-vg export"))
    words = [str(checkpoint) if word == "CKPT/best_model.pt" else word for word in shlex.split(shown)[2:]]
    code, _, err = command("export", *words)
    assert code == 0, err
    (body,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "sat_vg" not in body
    names: dict = {}
    monkeypatch.chdir(tmp_path)
    exec(compile(body.replace("224, 224", "32, 32"), "serving.md", "exec"), names)
    model = FineTuneModel.load_checkpoint(checkpoint).eval()
    import torch

    with torch.no_grad():
        expected = model(model.preprocessing.normalise(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
    assert np.allclose(names["logits"], expected.numpy(), atol=1e-4)
