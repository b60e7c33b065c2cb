"""``sat-vg serve`` in a real process: its answers, its limits, hostile requests, signals, and a real browser."""

import asyncio
import http.client
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, environment, write_image
from forks import Forked
from PIL import Image

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = pytest.mark.recipe
NAMES = ("<img src=x onerror=alert(1)>", "sea", "town")
BOUNDARY = "boundary-of-the-parts"


class Server:
    """A server in a process of its own."""

    def __init__(self, folder: Path, checkpoint: Path, *options: object) -> None:
        folder.mkdir(exist_ok=True)
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        for path in (self.out, self.err):
            path.write_text("")
        words = ["serve", str(checkpoint), "--port", "0", "--device", "cpu", *map(str, options)]
        self.process = Forked("sat_vg", words, folder, environment(folder), self.out, self.err)
        until = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", self.out.read_text())):
            assert self.process.poll() is None and time.monotonic() < until, self.err.read_text()
            time.sleep(0.02)
        self.port = int(found[1])

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = f"multipart/form-data; boundary={BOUNDARY}"):
        """Status and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def form(*files: tuple[str, bytes]) -> bytes:
    """The body of a request with such files."""
    head = '--{}\r\nContent-Disposition: form-data; name="images"; filename="{}"\r\nContent-Type: image/png\r\n\r\n'
    parts = [head.format(BOUNDARY, name).encode() + content + b"\r\n" for name, content in files]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def checkpoint(root):
    path = root / "best_model.pt"
    FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32, class_names=NAMES).save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def images(root):
    for number in range(5):
        write_image(root / f"images/{number}.png", (40 * number, 90, 200 - 30 * number), number, size=40 + number)
    Image.open(root / "images/0.png").save(root / "images/5.jpg")
    Image.open(root / "images/1.png").convert("L").save(root / "images/6.tif")
    return root / "images"


@pytest.fixture(scope="module")
def server(root, checkpoint):
    running = Server(root / "server", checkpoint, "--max_body_mib", 2, "--max_images", 8, "--timeout", 2,
                     "--max_megapixels", 1)  # fmt: skip
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


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def saved(size: tuple[int, int], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "green").save(file, kind)
    return file.getvalue()


GOOD = ("good.png", saved((40, 40)))
HOSTILE = {
    "no image": (422, "it cannot be read", form(("a.png", b"no image at all"))),
    "an empty file": (422, "the file is empty", form(("a.png", b""))),
    "cut short": (422, "it cannot be read", form(("a.png", GOOD[1][: len(GOOD[1]) // 2]))),
    "a script": (422, "it cannot be read", form(("a.svg", b"<svg onload='alert(1)'/>"))),
    "a bomb of 10 gigapixels": (413, "too large", form(("a.png", png_of(100_000, 100_000)))),
    "a bomb below Pillow's limit": (413, "12000 x 12000 pixels; 1 million", form(("a.png", png_of(12_000, 12_000)))),
    "a JPEG of 4 megapixels": (413, "2000 x 2000 pixels", form(("a.jpg", saved((2000, 2000), "JPEG")))),
    "a TIFF of 4 megapixels": (413, "2000 x 2000 pixels", form(("a.tif", saved((2000, 2000), "TIFF")[: 2**20]))),
    "one bad among good ones": (422, "bad.png: it cannot be read", form(GOOD, ("bad.png", b"x" * 99), GOOD)),
    "too many": (400, "", form(*[GOOD] * 9)),
    "a large body": (413, "2 MiB at most", form(("a.png", b"x" * (2 * 2**20)))),
    "a field and no file": (400, "holds no image", form().replace(b"--boundary", b"--boundary", 1)),
    "no boundary": (400, "Invalid multipart data; send images as multipart/form-data", b"nothing like a form"),
    "an odd name": (422, "it cannot be read", form(("../../etc/passwd\\x1b[31m", b"no image"))),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests_get_a_sentence(server, name):
    status, reason, body = HOSTILE[name]
    found = server.ask("POST", "/predict", body)
    assert found[0] == status, found
    assert reason in found[1]["error"]
    assert "\n" not in found[1]["error"]
    assert server.ask("POST", "/predict", form(GOOD))[0] == 200, "the next request is answered"


def test_other_wrong_requests(server):
    assert server.ask("POST", "/predict", b'{"a": 1}', "application/json")[0] == 400
    for top in ("0", "-1", "1.5", "x", "", "²"):
        status, found = server.ask("POST", f"/predict?top={top.encode().hex() if top == '²' else top}", form(GOOD))
        assert (status, "whole number" in found["error"]) == (400, True) or top == "²"
    assert server.ask("GET", "/predict")[0] == 405
    status, found = server.ask("GET", "/nowhere")
    assert (status, found["error"]) == (
        404, "there is no such path; there are GET /, GET /health, POST /predict, POST /embed",
    )  # fmt: skip


def raw(server: Server, *pieces: bytes, pause: float = 0.0, wait: float = 20.0) -> bytes:
    """What comes back for bytes that are sent one after another, until the server hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        found = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            while block := connection.recv(2**16):
                found += block
        except (BrokenPipeError, ConnectionResetError):
            pass
        return found


HEAD = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n".encode()


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ((), b""),  # connects and says nothing
        ((b"POST /pre",), b""),
        ((b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /hea"), b"200"),  # the second request hangs
        ((HEAD + b"Content-Length: 1000\r\n\r\n", b"--bound"), b"408"),
        ((HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n--bou\r\n",), b"408"),
    ],
)
def test_a_client_that_hangs_is_cut_off(server, pieces, status):
    began = time.monotonic()
    found = raw(server, *pieces)
    assert 1.5 < time.monotonic() - began < 8
    assert found.split(b" ")[1:2] == ([status] if status else [])


def test_a_body_without_an_end_is_cut_off(server):
    """Its length is not told, so it is counted; what comes after the answer is not waited for."""
    piece = b"%x\r\n" % 2**16 + b"x" * 2**16 + b"\r\n"
    began = time.monotonic()
    found = raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 40, *[piece] * 40, pause=0.05)
    assert time.monotonic() - began < 15
    assert not found or b" 413 " in found.split(b"\r\n")[0]


def test_a_gigabyte_is_refused_and_takes_no_memory(server):
    before = resident(server.process.pid)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    connection.putheader("Content-Length", str(2**30))
    connection.endheaders(b"x" * 2**20)
    answer = connection.getresponse()
    assert (answer.status, "2 MiB at most" in json.loads(answer.read())["error"]) == (413, True)
    connection.close()
    assert resident(server.process.pid) - before < 50 * 2**20
    assert server.ask("POST", "/predict", form(GOOD))[0] == 200


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_client_that_goes_away(server):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 1000)
    assert server.ask("POST", "/predict", form(GOOD))[0] == 200


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
