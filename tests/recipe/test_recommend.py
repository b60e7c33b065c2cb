"""``sat-vg recommend``: its rules, its table, and the memory of a step that it predicts against a measured one."""

import json
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.models.networks.costs import read_costs
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES
from sat_vg.backbone_finetuning.utils import machine_memory, precision
from sat_vg.backbone_finetuning.utils.errors import ConfigError

pytestmark = pytest.mark.recipe


def step_bytes(row, batch_size, image_size=None):
    """Memory of a training step; activations grow with the area of the images."""
    return row.fixed_bytes + round(batch_size * row.bytes_per_image * row.growth(image_size))


@pytest.fixture
def found(command):
    """What is recommended, as an object; its command is one that the training takes."""

    def run(*arguments: object) -> dict:
        code, out, err = command("recommend", "--json", *arguments)
        assert code == 0, err
        answer = json.loads(out)
        words = answer["command"].split()
        config = parse_command_line(words[2:]).config
        assert (config.backbone, config.strategy) == (answer["backbone"], answer["strategy"])
        assert config.batch_size == answer["batch_size"]
        return answer

    return run


def test_the_numbers_of_the_table():
    costs = read_costs()
    assert list(costs) == [name for name in BACKBONES if name in costs]
    assert len(costs) >= 40, "make costs measures what is missing"
    for row in costs.values():
        assert min(row.parameters, row.flops, row.fixed_bytes, row.bytes_per_image, row.images_per_second or 1) > 0, (
            row
        )
        assert row.fixed_bytes > 15 * row.parameters
    known = [row for row in costs.values() if row.top_1 is not None]
    assert len(known) >= len(costs) - 1
    assert all(50 < row.top_1 < row.top_5 < 100 for row in known)
    assert costs["resnet50"].parameters == 25_557_032
    assert costs["resnet50"].flops == pytest.approx(2 * 4.09e9, rel=0.02)
    assert costs["resnet50"].top_1 == pytest.approx(80.86, abs=0.01)


def test_the_page_has_the_table_of_the_file():
    page = (REPOSITORY / "docs/choosing.md").read_text()
    rows = [
        line for line in page.splitlines() if line.startswith("| ") and line.count("|") == 13 and "---" not in line
    ]
    assert len(rows) == len(read_costs()) + 1
    assert all(f"{name}" in page for name in BACKBONES), "measured or named as not measured"
    row = read_costs()["resnet50"]
    assert f"| resnet50 | 224 | {row.top_1:.1f} | {row.top_5:.1f} |" in page


def test_few_images_mean_a_probe_and_many_a_full_fine_tune(found):
    names = [
        found("--images", count, "--memory_gib", 16)["strategy"] for count in (1, 100, 101, 20_000, 20_001, 10**7)
    ]
    assert names == ["linear_probe", "linear_probe", "lp_ft", "lp_ft", "full", "full"]


def test_limits_are_kept(found):
    costs = read_costs()
    for arguments, holds in (
        (("--images", 5000, "--memory_gib", 16, "--mobile"), lambda row: row.parameters <= 6e6 and row.flops <= 1e9),
        (("--images", 500, "--memory_gib", 16), lambda row: row.parameters <= 30e6),
        (("--images", 10**6, "--memory_gib", 4), lambda row: step_bytes(row, 8) <= 0.8 * 4 * 2**30),
        (("--images", 10**6, "--memory_gib", 16, "--latency_ms", 20), lambda row: (row.milliseconds or 99) <= 20),
    ):
        answer = found(*arguments)
        rows = [costs[one["name"]] for one in answer["candidates"]]
        assert rows
        assert all(map(holds, rows)), arguments
        assert {row.name for row in costs.values() if row.top_1 and holds(row)} >= {row.name for row in rows}
        best = max(row.top_1 for row in rows)
        chosen = costs[answer["backbone"]]
        assert chosen.flops == min(row.flops for row in rows if row.top_1 >= best - 1)


def test_the_batch_is_what_fits(found):
    free, tight = (found("--images", 10**6, "--memory_gib", memory) for memory in (1000, 3))
    assert free["batch_size"] == 32
    row, room = read_costs()[tight["backbone"]], 0.8 * 3 * 2**30
    assert step_bytes(row, tight["batch_size"]) <= room
    assert tight["batch_size"] == 32 or step_bytes(row, 2 * tight["batch_size"]) > room
    assert "micro_batch_size" not in tight["command"]


def test_a_probe_has_room_for_a_forward_pass(found):
    """At 2048 pixels the activations of a batch are gigabytes; they are less than those that a step keeps."""
    for memory in (4, 8):
        answer = found("--images", 50, "--memory_gib", memory, "--image_size", 2048)
        assert answer["strategy"] == "linear_probe"
        for row in (read_costs()[one["name"]] for one in answer["candidates"]):
            forward = 8 * row.forward_bytes_per_image * row.growth(2048)
            assert 8 * row.parameters + forward <= 0.8 * memory * 2**30, row.name
    for row in read_costs().values():
        assert row.forward_bytes_per_image < row.bytes_per_image
        pixels = 3 * 2 * row.image_size**2  # in bf16
        assert row.forward_bytes_per_image > pixels


@pytest.mark.parametrize("computes_in_bf16", [True, False])
@pytest.mark.parametrize(("images", "size"), [(10**6, 224), (50, 2048)])
def test_memory_is_counted_in_the_format_of_the_machine(found, monkeypatch, computes_in_bf16, images, size):
    """A CPU without bf16 keeps activations of twice the bytes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_cpu_computes_in_bf16", lambda: computes_in_bf16)
    monkeypatch.setattr(machine_memory, "machine_memory", lambda: SimpleNamespace(total=3 * 2**30))
    answer = found("--images", images, "--image_size", size)
    ending, given = ("", "true") if computes_in_bf16 else ("_fp32", "false")
    assert answer["strategy"] == ("full" if images > 50 else "linear_probe")
    for row in map(read_costs().get, (one["name"] for one in answer["candidates"])):
        fixed = getattr(row, f"fixed_bytes{ending}")
        per_image = getattr(row, f"bytes_per_image{ending}")
        if images == 50:
            fixed, per_image = 8 * row.parameters, getattr(row, f"forward_bytes_per_image{ending}")
        assert fixed + 8 * per_image * row.growth(size) <= 0.8 * 3 * 2**30, row.name
    said = f"in four fifths of this machine's 3 GiB, in {'bf16' if computes_in_bf16 else 'fp32'}"
    assert any(said in reason for reason in answer["reasons"])
    elsewhere = found("--images", images, "--image_size", size, "--memory_gib", 3, "--mixed_precision", given)
    assert elsewhere["candidates"] == answer["candidates"]
    assert ("--mixed_precision false" in elsewhere["command"]) == (given == "false")


def test_larger_images_take_more(found):
    row = read_costs()["resnet50"]
    assert step_bytes(row, 8, 448) - row.fixed_bytes == 4 * (step_bytes(row, 8, 224) - row.fixed_bytes)
    assert "--image_size 512" in found("--images", 5000, "--memory_gib", 16, "--image_size", 512)["command"]


def test_only_backbones_that_take_the_images_size(found):
    """ViTs take multiples of their patches alone, and some networks end before images so small do."""
    for size, refuses in (
        (100, {"vit_h_14", "vit_b_16", "maxvit_t"}),
        (20, {"inception_v3", "convnext_tiny", "vgg11"}),
    ):
        answer = found("--images", 10**6, "--memory_gib", 1000, "--image_size", size)
        names = {one["name"] for one in answer["candidates"]}
        assert "resnet50" in names
        assert not names & refuses
        assert any(f"images of {size} pixels: {len(names)} of" in reason for reason in answer["reasons"])


def test_own_images_are_counted(command, class_folders):
    code, out, err = command("recommend", class_folders)
    assert code == 0, err
    assert "27 training images in 3 classes: strategy linear_probe" in out
    assert f"sat-vg train --dataset_path {class_folders} --backbone " in out


@pytest.mark.parametrize("line", ["--images 1200 --memory_gib 8", "--images 1200 --mobile", "--table"])
def test_the_shown_commands(command, line):
    assert f"sat-vg recommend {line}\n" in (REPOSITORY / "docs/choosing.md").read_text()
    code, out, err = command("recommend", *line.split())
    assert code == 0, err
    assert out.count("\n") > (80 if line == "--table" else 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "how many images are there? sat-vg recommend DATA counts them"),
        (["--images", "0"], "--images 0: must be a whole number of 1 or more"),
        (["--images", "many"], "--images many: must be a whole number"),
        (["nowhere"], "nowhere"),
        (["images", "--images", "5"], "is given twice"),
        (["--table", "--images", "5"], "--images has no effect with --table, which shows all backbones"),
        (["images", "--table"], "DATA has no effect with --table"),
        (["--images", "5", "--memory_gib", "0.001"], "left with a step of 8 images in four fifths of 0.001 GiB"),
        (["--images", "5", "--memory_gib", "-1"], "--memory_gib -1.0: must be a number above 0"),
        (["--images", "5", "--latency_ms", "1e-6"], "no backbone is left with 1e-06 ms an image or less, of the "),
        (["--images", "5", "--image_size", "5"], "--image_size 5: must be"),
        (["--images", "5", "--mobil"], "did you mean --mobile?"),
    ],
)  # fmt: skip
def test_bad_input(command, arguments, message):
    code, _, err = command("recommend", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") <= 2


def test_the_predicted_memory_of_a_step_is_that_of_a_real_one(monkeypatch, capsys):
    """One small backbone here; docs/benchmarks/memory.md has the others, measured by the same script."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(REPOSITORY / "tests/bench")
    import_module("step_memory").main(["--backbones", "mobilenet_v2", "--batch_size", "32", "--image_size", "128"])
    assert 0.8 < json.loads(capsys.readouterr().out.splitlines()[-1])["mobilenet_v2"] < 1.2


def test_in_python():
    from sat_vg.backbone_finetuning import recommend

    found = recommend(images=500, memory_gib=8, mobile=True)
    assert found.strategy == "lp_ft"
    assert found.backbone == found.candidates[0].name
    with pytest.raises(ConfigError, match=r"recommend\(\) has no field 'memory'"):
        recommend(images=500, memory=8)
