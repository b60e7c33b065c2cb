"""Decoded images kept in a file: the same pixels, never old ones, and never a crash."""

import copy
import os
import pickle
import resource
import warnings
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_image
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.readable import examine_images
from sat_vg.backbone_finetuning.data.loading.augmentation import satellite
from sat_vg.backbone_finetuning.data.loading.loaders import ImageDataset
from sat_vg.backbone_finetuning.data.reading.decoded_cache import DecodedImages, in_words, keep_decoded, lay_out
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError


@pytest.fixture
def paths(tmp_path):
    """An image of every kind: formats, bands, orientation, odd sizes; some are copies, as the last two."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (37, 52, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for ending in ("jpg", "png", "tif", "webp", "bmp"):
        image.resize((30, 41)).save(folder / f"rgb.{ending}")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("L").save(folder / "grey.png")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").rotate(30).save(folder / "alpha.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(40, dtype=np.uint16).reshape(5, 8) * 1000).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    image.crop((0, 0, 1, 1)).save(folder / "one_pixel.png")
    image.save(folder / "whole.png")
    image.save(folder / "whole_again.bmp")
    return sorted(str(path) for path in folder.iterdir())


@pytest.fixture
def cache(tmp_path):
    return BoundedCache(tmp_path / "cache", 2**30)


def plan(paths):
    examined = examine_images(paths)
    assert not examined.bad
    return lay_out(paths, examined.contents, examined.sizes)


def require_same(read, paths):
    assert len(paths) > 3
    for path in paths:
        expected, found = decode_rgb(path), read(path)
        assert torch.equal(found, expected), path
        assert found.dtype == torch.uint8


def entry(cache):
    (folder,) = (path for path in cache.folder.iterdir() if path.name != ".lock")
    return folder


@pytest.mark.parametrize("mode", ["disk", "auto", "ram"])
def test_the_pixels_are_those_of_decoding(paths, cache, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.set_warn_always(True)
        try:
            read, note = keep_decoded(mode, plan(paths), cache)
            require_same(read, paths)
        finally:
            torch.set_warn_always(False)
    assert isinstance(read, DecodedImages)
    assert all(read(path).permute(1, 2, 0).is_contiguous() for path in paths)
    num_bytes = sum(map(len, {decode_rgb(path).numpy().tobytes() for path in paths}))  # copies once
    place = "memory" if mode == "ram" else str(cache.folder)
    assert note.startswith(f"decoded images: {in_words(num_bytes)} in {place}, made in ")
    assert cache.num_bytes() == (0 if mode == "ram" else num_bytes + (entry(cache) / "index.npy").stat().st_size)


def test_they_are_found_again_in_any_order_and_number_of_copies(paths, cache):
    keep_decoded("disk", plan(paths), cache)
    for mode in ("disk", "auto"):
        read, note = keep_decoded(mode, plan(paths[::-1] + paths[:1]), cache, is_read_once=True)
        assert note == f"decoded images: {in_words(plan(paths).num_bytes)} in {cache.folder}, found"
        assert isinstance(read, DecodedImages)
        require_same(read, paths)


def test_off_and_runs_that_read_once_decode(paths, cache):
    assert keep_decoded("off", plan(paths), cache) == (decode_rgb, None)
    read, note = keep_decoded("auto", plan(paths), cache, is_read_once=True)
    assert read is decode_rgb
    assert note == ("decoded images: not kept, every epoch decodes them anew (this run reads each of them once)")
    assert keep_decoded("disk", lay_out([], {}, {}), cache) == (decode_rgb, None)
    assert not cache.folder.exists()
    assert isinstance(keep_decoded("disk", plan(paths), cache, is_read_once=True).read, DecodedImages)


def test_whatever_is_not_in_the_file_is_decoded(paths, cache, tmp_path):
    read, _ = keep_decoded("disk", plan(paths[:5]), cache)
    require_same(read, paths)
    with pytest.raises(DataError, match="no such file"):
        read(str(tmp_path / "none.png"))


def test_a_changed_image_leads_to_another_file(paths, cache):
    before = plan(paths)
    keep_decoded("disk", before, cache)
    write_image(Path(paths[3]), (9, 9, 9), 5)
    after = plan(paths)
    assert after.key != before.key
    assert plan(paths[-2::-1]).key == after.key  # without a copy the pixels are the same
    assert len({before.key, after.key, plan(paths[:4]).key, plan(paths[:5]).key}) == 4
    read, note = keep_decoded("disk", after, cache)
    assert "made in" in note
    require_same(read, paths)


def test_an_image_that_changes_after_the_check_is_not_taken_for_the_checked_one(paths, cache):
    checked = plan(paths)
    with Image.open(paths[3]) as image:
        ImageOps.invert(image.convert("RGB")).save(paths[3])  # of the same size
    for mode in ("disk", "ram"):
        read, note = keep_decoded(mode, checked, cache)
        assert read is decode_rgb
        assert f"({paths[3]!r} has changed since it was checked)" in note
    assert cache.num_bytes() == 0
    Path(paths[3]).unlink()
    assert keep_decoded("disk", checked, cache).read is decode_rgb


@pytest.mark.parametrize(
    "damage", ["shorter", "longer", "no pixels", "no index", "text", "cut", "floats", "offsets", "sizes", "others"]
)
def test_a_damaged_file_is_noticed_and_made_again(paths, cache, damage):
    images = plan(paths)
    keep_decoded("disk", images, cache)
    pixels, table = entry(cache) / "pixels.bin", entry(cache) / "index.npy"
    index = np.load(table)
    if damage in ("shorter", "longer"):
        os.truncate(pixels, images.num_bytes + (1 if damage == "longer" else -1))
    elif damage.startswith("no "):
        (pixels if damage == "no pixels" else table).unlink()
    elif damage in ("text", "cut"):
        table.write_bytes(b"x" * 99 if damage == "text" else table.read_bytes()[:-9])
    else:
        index[1, 1] += damage == "offsets"
        index[1, 2:] = index[1, 2:][:: -1 if damage == "sizes" else 1]
        index[2, 0] += damage == "others"
        np.save(table, index.astype(float) if damage == "floats" else index)
    read, note = keep_decoded("disk", images, cache)
    assert "made in" in note
    require_same(read, paths)
    assert keep_decoded("disk", images, cache).note.endswith("found")


def test_who_writes_into_an_image_writes_for_the_own_process_only(paths, cache):
    for mode in ("ram", "disk"):
        read, _ = keep_decoded(mode, plan(paths), cache)
        other = pickle.loads(pickle.dumps(read))
        read(paths[0]).fill_(7)
        require_same(other, paths)
        require_same(copy.deepcopy(read), paths)
    require_same(keep_decoded("disk", plan(paths), cache).read, paths)


def test_the_file_may_vanish_under_a_run(paths, cache):
    read, _ = keep_decoded("disk", plan(paths), cache)
    cache.remove(entry(cache).name)
    require_same(read, paths)
    require_same(pickle.loads(pickle.dumps(read)), paths)


def test_no_descriptor_is_left_open(paths, cache):
    def count():
        return len(list(Path("/proc/self/fd").iterdir()))

    keep_decoded("disk", plan(paths), cache)  # whatever is opened once is open now
    before = count()
    for mode in ("disk", "ram", "disk"):
        read, _ = keep_decoded(mode, plan(paths), cache)
        copied = copy.deepcopy(read)
        del read, copied
    assert count() == before


def test_what_does_not_fit(paths, tmp_path):
    images = plan(paths)
    small = BoundedCache(tmp_path / "cache", 1000)
    with pytest.raises(ConfigError) as caught:
        keep_decoded("disk", images, small)
    for part in (
        "cache = 'disk'",
        f"({images.num_bytes + 128 + images.index.nbytes} bytes)",
        "--cache_gib allows 1 KiB (1000 bytes); allow --cache_gib 0.1,",
        "--cache auto",
    ):
        assert part in str(caught.value), part
    read, note = keep_decoded("auto", images, small)
    assert read is decode_rgb
    assert note.startswith("decoded images: not kept, every epoch decodes them anew (they take ")
    assert note.endswith(" bytes), and --cache_gib allows 1 KiB (1000 bytes))")

    contents, size = {path: number for number, path in enumerate(paths)}, (2**20, 2**20)
    huge = lay_out(paths, contents, dict.fromkeys(paths, size))  # 3 TiB each, by what it says
    read, note = keep_decoded("auto", huge, BoundedCache(tmp_path / "cache", 2**60))
    assert read is decode_rgb
    assert f"{in_words(huge.num_bytes)} are more than half of the memory" in note
    with pytest.raises(ConfigError, match=r"cache = 'ram': .* of memory are to spare; use --cache disk, auto or off"):
        keep_decoded("ram", huge, small)
    with pytest.raises(ConfigError, match=r"the disk of .* has .* to spare; make room there, or set SAT_VG_CACHE"):
        keep_decoded("disk", huge, BoundedCache(tmp_path / "cache", 2**60))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name != ".lock"]


@pytest.mark.parametrize("mode", ["auto", "disk", "ram"])
def test_a_disk_that_fills_up(paths, cache, mode):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    images = plan(paths)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # as a full disk: writing more than that fails
    try:
        read, note = keep_decoded(mode, images, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read is decode_rgb
    assert note.startswith("decoded images: not kept, every epoch decodes them anew (File too large; ")
    assert cache.num_bytes() == 0
    if cache.folder.exists():
        assert [path.name for path in cache.folder.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_to(paths, tmp_path):
    (tmp_path / "file").touch()
    read, note = keep_decoded("auto", plan(paths), BoundedCache(tmp_path / "file/cache", 2**30))
    assert read is decode_rgb
    assert "(Not a directory; " in note


def batches(split, read, num_workers, context=None):
    dataset = ImageDataset(split, satellite(24, "bilinear"), 0, read)
    keys = [[(view, index) for index in range(start, start + 5)] for view in (0, 3) for start in (0, 5, 10)]
    loader = DataLoader(dataset, batch_sampler=keys, num_workers=num_workers, multiprocessing_context=context)
    return [image for images, _, _ in loader for image in images]


def test_the_same_batches_with_any_cache_and_number_of_workers(class_folders, cache):
    split = load_class_folders(class_folders).train
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(split.paths[0]).resize((30, 50)).save(split.paths[0], exif=exif)  # decoded into another memory layout
    images = plan(split.paths)
    expected = batches(split, decode_rgb, 0)
    assert len(expected) == 30
    checked = 0
    for mode in ("off", "disk", "disk", "ram"):
        read, _ = keep_decoded(mode, images, cache)
        for num_workers in (0, 2):
            found = batches(split, read, num_workers)
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
            checked += 1
    assert checked == 8


def _sums(readers, paths, queue):
    queue.put([[int(read(path).sum()) for path in paths] for read in readers])


def test_a_process_that_is_not_forked_gets_the_same_file(paths, cache):
    readers = [keep_decoded(mode, plan(paths), cache).read for mode in ("disk", "ram")]
    expected = [int(decode_rgb(path).sum()) for path in paths]
    for path in paths:
        Path(path).unlink()  # so nothing can be decoded
    context = get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_sums, args=(readers, paths, queue))
    process.start()
    assert queue.get(timeout=120) == [expected, expected]
    process.join()


@pytest.fixture
def many(paths):
    """Enough images for building to take a while."""
    folder = Path(paths[0]).parent
    noise = np.random.default_rng(1).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    for number in range(40):
        Image.fromarray(np.roll(noise, number)).save(folder / f"large{number}.png", compress_level=1)
    return sorted(map(str, folder.iterdir()))


def _use(layout, cache, barrier, queue):
    torch.set_num_threads(1)  # a forked process has none of the threads that torch counts on
    barrier.wait()
    read, note = keep_decoded("disk", layout, cache)
    queue.put((note, sum(int(read(path).sum()) for path in layout.rows)))


@pytest.fixture
def start_other(many, cache):
    """Let another process use the cache, at the same moment as this one."""
    context, started = get_context("fork"), []
    layout, barrier, queue = plan(many), context.Barrier(2), context.Queue()

    def start():
        started.append(context.Process(target=_use, args=(layout, cache, barrier, queue)))
        started[0].start()
        barrier.wait()
        return started[0], queue

    yield start
    for process in started:
        process.kill()
        process.join()


def test_two_processes_at_once(many, start_other, cache):
    layout = plan(many)
    _, queue = start_other()
    read, note = keep_decoded("disk", layout, cache)
    theirs, total = queue.get(timeout=120)
    assert "made in" in note + theirs  # by both, unless one of them was held up
    assert total == sum(int(decode_rgb(path).sum()) for path in many)
    assert len(list(cache.folder.iterdir())) == 2  # the entry and the lock
    require_same(read, many)
    require_same(keep_decoded("disk", layout, cache).read, many)


def test_killed_while_decoding(many, start_other, cache):
    other, _ = start_other()
    while not list(cache.folder.glob(".*.tmp/pixels.bin")):
        assert other.is_alive()
    other.kill()
    other.join()
    assert len(list(cache.folder.glob(".*.tmp"))) == 1
    assert cache.num_bytes() == 0
    read, note = keep_decoded("disk", plan(many), cache)
    assert "made in" in note
    require_same(read, many)
    assert not list(cache.folder.glob(".*.tmp"))


def test_off_in_yaml_needs_its_quotes(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("cache: off\n")
    message = (
        r'cache = \'?False\'?: must be auto or ram or disk or off; for example auto; in a YAML file "off" needs its'
    )
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig.from_yaml(path)
    with pytest.raises(ConfigError, match=message):
        parse_command_line(["--config", str(path)])
    path.write_text("cache: 'off'\n")
    assert parse_command_line(["--config", str(path)]).config.cache == "off"
    FinetuneConfig(cache="off").to_yaml(path)
    assert FinetuneConfig.from_yaml(path).cache == "off"
    assert parse_command_line(["--cache", "off"]).config.cache == "off"
