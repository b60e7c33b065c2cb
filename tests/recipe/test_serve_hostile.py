"""``sat-vg serve`` and requests that are wrong, hostile or never end: a sentence, and the next one is answered."""

import http.client
import json
import os
import socket
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from serving_here import BOUNDARY, GOOD, HEAD, NAMES, Server, form, raw, save_model, saved

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles, Preprocessing

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def server(root):
    running = Server(root / "server", save_model(root / "best_model.pt"), "--max_body_mib", 2, "--max_images", 8,
                     "--timeout", 2, "--max_megapixels", 1)  # fmt: skip
    yield running
    assert running.process.poll() is None, running.err.read_text()
    assert running.stop() == 0
    assert "Traceback" not in running.err.read_text(), running.err.read_text()


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


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
    "a form that is cut short after a good image": (400, "its last boundary is missing", form(GOOD, GOOD)[:-9]),
    "an empty form": (400, "holds no image", form()),
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
    for kind in ("application/json", "image/png", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        status, found = server.ask("POST", "/predict", b'{"a": 1}', kind)
        assert (status, "curl -F" in found["error"]) == (400, True)
    for charset in ("undefined", "punycode"):  # encodings of Python that are none of a text
        kind = f"multipart/form-data; boundary={BOUNDARY}; charset={charset}"
        status, found = server.ask("POST", "/predict", form(GOOD), kind)
        assert (status, "charset" in found["error"]) == (400, True)
    assert server.ask("POST", "/predict/", form(GOOD))[0] == 404, "no redirect without a word"
    for top in ("0", "-1", "1.5", "x", "", "²"):
        status, found = server.ask("POST", f"/predict?top={top.encode().hex() if top == '²' else top}", form(GOOD))
        assert (status, "whole number" in found["error"]) == (400, True) or top == "²"
    assert server.ask("GET", "/predict")[0] == 405
    status, found = server.ask("GET", "/nowhere")
    assert (status, found["error"]) == (
        404, "there is no such path; there are GET /, GET /health, POST /predict, POST /embed",
    )  # fmt: skip


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


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        ((b"\x16\x03\x01\x02\x00\x01\r\n\r\n",), [b"400"]),
        ((b"GET /health HTTP/1.1\r\n\r\n",), [b"400"]),  # without Host
        ((HEAD + b"Content-Length: -5\r\n\r\n",), [b"400"]),
        ((HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",), [b"400"]),
        ((HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n"), [b"400"]),
        ((HEAD.replace(b"predict", b"nowhere") + b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n"), [b"404"]),
        ((HEAD.replace(b"predict", b"nowhere") + b"Content-Length: 1\r\n\r\n", b"xzz\r\n\r\n"), [b"404", b"400"]),
    ],
)
def test_what_is_no_http_gets_a_sentence(server, pieces, statuses):
    answers = raw(server, *pieces, pause=0.3).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == statuses
    for answer in answers:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_heads(server):
    for path, status in (("/", b"200"), ("/health", b"200"), ("/predict", b"405")):
        request = f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        assert raw(server, request).split(b" ")[1] == status


def test_a_geotiff_that_pillow_cannot_open_has_the_same_bounds(root):
    rasterio = pytest.importorskip("rasterio", reason="GeoTIFFs of several bands need rasterio")
    bands, files = ("a", "b", "c", "d", "e"), BandFiles((1, 2, 3, 4, 5), "uint16", 5, scaling="plain")
    preprocessing = Preprocessing(image_size=32, bands=bands, mean=(5.0,) * 5, std=(1.0,) * 5, scale=1.0, files=files)
    model = FineTuneModel("squeezenet1_1", 3, pretrained=False, bands=bands, class_names=NAMES)
    model.preprocessing = preprocessing
    model.save_checkpoint(root / "bands.pt")
    bodies = []
    for size in (40, 2000):
        path = root / f"{size}.tif"
        kind = {"driver": "GTiff", "count": 5, "dtype": "uint16", "compress": "deflate"}
        with rasterio.open(path, "w", width=size, height=size, **kind) as file:
            file.write(np.random.default_rng(0).integers(3, 8, (5, size, size)).astype(np.uint16))
        bodies.append(form((path.name, path.read_bytes())))
    server = Server(root / "bands", root / "bands.pt", "--max_megapixels", 1)
    assert server.ask("POST", "/predict", bodies[0])[0] == 200
    status, found = server.ask("POST", "/predict", bodies[1])
    assert (status, "2000 x 2000 pixels; 1 million" in found["error"]) == (413, True)
    assert server.stop() == 0


def test_a_client_that_goes_away(server):
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 1000)
    assert server.ask("POST", "/predict", form(GOOD))[0] == 200
