"""A server of ``sat-vg serve`` in a process of its own, and requests to it."""

import http.client
import io
import json
import re
import signal
import socket
import time
from pathlib import Path

from conftest import environment
from forks import Forked
from PIL import Image

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

NAMES = ("<img src=x onerror=alert(1)>", "sea", "town")
BOUNDARY = "boundary-of-the-parts"


def save_model(path: Path) -> Path:
    """A best_model.pt of a small network."""
    FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32, class_names=NAMES).save_checkpoint(path)
    return path


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


def saved(size: tuple[int, int], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "green").save(file, kind)
    return file.getvalue()


GOOD = ("good.png", saved((40, 40)))


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
