"""Hostile and broken inputs, made on the spot: images, names, folders, configurations, tensor files.

``python tests/recipe/hostile_corpus.py DIR`` writes them to DIR, to be looked at with other tools.
"""

import io
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from odd_entries import write_socket
from PIL import Image

Maker = Callable[[Path], object]


def noise(width=40, height=40, mode="RGB", seed=0):
    shape = (height, width, {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(2) if mode == "L" else pixels, mode=mode)


def encoded(image, kind, **options):
    packed = io.BytesIO()
    image.save(packed, kind, **options)
    return packed.getvalue()


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, *extra, rows=1):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(rows * (1 + 3 * min(width, 10_000)))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + png_chunk(b"IEND", b"")


def jpeg_of_size(width, height):
    data = bytearray(encoded(noise(), "jpeg"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_many_scans():
    data = encoded(noise(), "jpeg", progressive=True)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    return data[:first] + data[first:second] * 5000 + data[second:]


def tiff_that_loops():
    entries = [(256, 4, 1, 40), (257, 4, 1, 40), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 1600)]
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<I", 8)


def write_pipe(path):
    os.mkfifo(path)


def write_sparse(path):
    with path.open("wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
        file.truncate(2 * 2**30)


def content(data: bytes | Callable[[], bytes]) -> Maker:
    return lambda path: path.write_bytes(data() if callable(data) else data)


def link(target: str) -> Maker:
    return lambda path: path.symlink_to(target)


# name of the file → how it is made, and what the message on it says
BAD_IMAGES: dict[str, tuple[Maker, str]] = {
    "truncated.jpg": (content(lambda: encoded(noise(), "jpeg")[:300]), "cut short"),
    "truncated.png": (content(lambda: encoded(noise(), "png")[:-900]), "cut short"),
    "truncated.webp": (content(lambda: encoded(noise(), "webp", lossless=True)[:-500]), "cut short or damaged"),
    "truncated.tif": (content(lambda: encoded(noise(), "tiff")[:900]), "cut short"),
    "empty.jpg": (content(b""), "0 bytes"),
    "text.jpg": (content(b"not found\n"), "it is no JPEG"),
    "page.png": (content(b"<html><script>alert(1)</script></html>"), "it is no JPEG"),
    "drawing.png": (
        content(b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'),
        "it is no JPEG",
    ),
    "postscript.jpg": (content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n"), "no JPEG"),
    "pickle.png": (content(lambda: pickle.dumps(Payload("canary_of_a_picture"))), "it is no JPEG"),
    "archive.tif": (content(lambda: zip_of({"a": bytes(10**6)})), "it is no JPEG"),
    "bomb.png": (content(png(60_000, 60_000)), "decompression bomb"),
    "bomb.jpg": (content(lambda: jpeg_of_size(65_500, 65_500)), "decompression bomb"),
    "bomb.bmp": (content(b"BM" + struct.pack("<IIIIiiHH", 99, 0, 54, 40, 2**20, 2**20, 1, 24) + bytes(24)), "bomb"),
    "endless_header.bmp": (content(b"BM" + struct.pack("<IIII", 99, 0, 2**31, 2**31 - 1) + bytes(90)), "damaged"),
    "scans.jpg": (content(jpeg_of_many_scans), "scans"),
    "text_bomb.png": (
        content(lambda: png(40, 40, *[png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26)))] * 3, rows=40)),
        "cut short or damaged",
    ),
    "checksum.png": (content(lambda: altered(encoded(noise(), "png"), 60)), "damaged"),
    "float.tif": (content(lambda: encoded(Image.new("F", (9, 9)), "tiff")), "floating-point"),
    "loop.tif": (content(tiff_that_loops), "damaged"),
    "no_size.jpg": (content(lambda: jpeg_of_size(0, 0)), "damaged"),
    "pipe.jpg": (write_pipe, "pipe"),
    "socket.png": (write_socket, "not a file"),
    "device.jpg": (link("/dev/zero"), "device"),
    "nothing.png": (link("/dev/null"), "device"),
    "itself.jpg": (link("itself.jpg"), "cannot be opened"),
    "dangling.jpg": (link("/nowhere/at/all.jpg"), "no such file"),
    "sparse.jpg": (write_sparse, "2.0 GiB"),
}


def altered(data, position):
    return data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :]


# Odd, and fine: what they become stands in docs/data.md.
ODD_IMAGES: dict[str, Maker] = {
    "cmyk.jpg": content(lambda: encoded(noise(mode="CMYK"), "jpeg")),
    "animated.png": content(
        lambda: encoded(noise(), "gif", save_all=True, append_images=[noise(seed=1), noise(seed=2)])
    ),
    "animated.webp": content(lambda: encoded(noise(seed=3), "webp", save_all=True, append_images=[noise(seed=4)])),
    "one_pixel.png": content(lambda: encoded(noise(1, 1, seed=5), "png")),
    "one_pixel.jpg": content(lambda: encoded(noise(1, 1, seed=6), "jpeg")),
    "line.png": content(lambda: encoded(noise(30_000, 1, seed=7), "png")),
    "column.png": content(lambda: encoded(noise(1, 30_000, seed=8), "png")),
    "wide.jpg": content(lambda: encoded(noise(30_000, 40, seed=9), "jpeg")),
    "really_a_png.jpg": content(lambda: encoded(noise(seed=10), "png")),
    "really_a_jpeg.tif": content(lambda: encoded(noise(seed=11), "jpeg")),
    "transparent.png": content(lambda: encoded(noise(mode="RGBA", seed=12), "png")),
    "grey.jpg": content(lambda: encoded(noise(mode="L", seed=13), "jpeg")),
}

ODD_NAMES = [
    b"with spaces .jpg",
    "ünï—çødé 卫星 🛰.jpg".encode(),
    b"line\nbreak.jpg",
    b"tab\tand\rreturn.jpg",
    b"\x1b]0;title\x07\x1b[31mred.jpg",
    b"not utf-8 \xff\xfe.jpg",
    b"$(touch canary_of_a_name).jpg",
    b"'; touch canary_of_a_quote; '.jpg",
    b"-rf.jpg",
    b"%s%n{0}{x.__class__}.jpg",
    b"=cmd|' '!A0.jpg",
    b"\xe2\x80\xaetxt.jpg",
    b"x" * 250 + b".jpg",
]
ODD_CLASS_NAMES = [
    b"$\\frac{$",
    b"<script>alert(1)",
    b"<img src=x onerror=alert(1)>",
    b"a\\..\\..\\outside",
    b"new\nline",
    b"\x1b[2J",
    b"bytes \xff",
    b"{x}%s",
    b"-1",
    b"~root",
    b"null",
]


class Payload:
    """An object whose pickle runs a command when it is loaded carelessly."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def zip_of(entries, compressed=True):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return packed.getvalue()


def saved(value):
    packed = io.BytesIO()
    torch.save(value, packed)
    return packed.getvalue()


def huge_tensor():
    """A file of a few hundred bytes whose pickle asks for a tensor of 10**12 numbers."""
    data = saved({"weight": torch.zeros(3)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in entries if n.endswith("data.pkl"))
    entries[name] = entries[name].replace(b"K\x03", b"\x8a\x06" + (10**12).to_bytes(6, "little"))
    return zip_of(entries, compressed=False)


def zip_bomb():
    return zip_of({"archive/data.pkl": b"\x80\x02]" + b"]" * 10 + bytes(3 * 10**8), "archive/version": b"3\n"})


TENSOR_FILES: dict[str, Maker] = {
    "empty.pt": content(b""),
    "text.pt": content(b"weights\n"),
    "picture.pt": content(lambda: encoded(noise(), "png")),
    "pickle.pt": content(lambda: pickle.dumps(Payload("canary_of_a_pickle"), protocol=2)),
    "object.pt": content(lambda: saved(Payload("canary_of_an_object"))),
    "inside.pt": content(lambda: saved({"state_dict": Payload("canary_inside")})),
    "zip_bomb.pt": content(zip_bomb),
    "huge_tensor.pt": content(huge_tensor),
    "bytearray.pt": content(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R."),
    "nested.pt": content(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "cut.pt": content(lambda: saved({"weight": torch.zeros(999)})[:2000]),
    "altered.pt": content(lambda: altered(saved({"weight": torch.zeros(999)}), 1500)),
    "number.pt": content(lambda: saved(3)),
    "list.pt": content(lambda: saved([1, {"a": torch.zeros(2)}])),
    "plain.pt": content(lambda: saved({"a": 1, "b": "text"})),
    "folder.pt": lambda path: path.mkdir(),
    "pipe.pt": write_pipe,
    "device.pt": link("/dev/zero"),
    "itself.pt": link("itself.pt"),
    "slip.pt": content(lambda: zip_of({"../../canary_of_a_slip": b"x", "/tmp/canary": b"x"})),
    "header.safetensors": content(struct.pack("<Q", 2**62) + b"{}"),
    "claims.safetensors": content(
        struct.pack("<Q", 67)
        + b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'
        + b" "
        + bytes(4)
    ),
    "text.safetensors": content(b"not safe"),
}

CONFIGS: dict[str, tuple[Maker, str]] = {
    "apply.yaml": (
        content(b"backbone: !!python/object/apply:os.system ['touch canary_of_yaml']\n"),
        "not valid YAML",
    ),
    "module.yaml": (content(b"!!python/object/new:subprocess.Popen [[touch, canary_of_popen]]\n"), "not valid YAML"),
    "name.yaml": (content(b"seed: !!python/name:os.system\n"), "not valid YAML"),
    "laughs.yaml": (
        content(
            b"a0: &a0 [x, x, x]\n"
            + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12))
            + b"backbone: *a11\n"
        ),
        "aliases",
    ),
    "itself.yaml": (content(b"backbone: &a [*a]\n"), "aliases"),
    "deep.yaml": (content(b"backbone: " + b"[" * 20_000 + b"]" * 20_000), "nested too deeply"),
    "digits.yaml": (content(b"seed: " + b"9" * 5000), "not valid YAML"),
    "huge.yaml": (content(b"num_workers: 99999999999999999999\nbatch_size: 1e999\n"), "2 problems"),
    "infinite.yaml": (content(b"learning_rate: .inf\nweight_decay: .nan\n"), "2 problems"),
    "date.yaml": (content(b"seed: 2024-99-99\n"), "seed = '2024-99-99': must be a whole number"),
    "nul.yaml": (content(b"backbone: res\0net\n"), "not valid YAML"),
    "binary.yaml": (content(bytes(range(256))), "not UTF-8"),
    "types.yaml": (content(b"batch_size: {a: [1, 2]}\nbackbone: 3\ndropout: yes\n"), "3 problems"),
    "unknown.yaml": (content(b"__class__: x\n3: y\n"), "no field"),
    "steering.yaml": (content(b'"\\e[2J": 1\n'), "no field"),
    "keys.yaml": (content(b"? [1, 2]\n: x\n"), "not valid YAML"),
    "list.yaml": (content(b"- a\n- b\n"), "must hold lines"),
    "empty.yaml": (content(b""), "must hold lines"),
    "large.yaml": (content(b"# " + b"x" * 2**20), "larger than"),
    "folder.yaml": (lambda path: path.mkdir(), "cannot be read"),
    "pipe.yaml": (write_pipe, "cannot be read"),
    "device.yaml": (link("/dev/zero"), "cannot be read"),
    "itself.yml": (link("itself.yml"), "cannot be read"),
    "user.yaml": (content(b"dataset_path: ~nosuchuser/images\n"), "nosuchuser"),
    "path.yaml": (content(b'dataset_path: "a\\0b"\n'), "dataset_path"),
    "long.yaml": (content(b"dataset_path: " + b"x" * 5000), "File name too long"),
}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    makers = {**{n: m for n, (m, _) in {**BAD_IMAGES, **CONFIGS}.items()}, **ODD_IMAGES, **TENSOR_FILES}
    target.mkdir(parents=True)
    for file_name, make in makers.items():
        make(target / file_name)
    print(f"{len(makers)} files in {target}")
