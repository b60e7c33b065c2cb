import json
import math
import os
import time
from itertools import count

import numpy as np
import pytest
from google.protobuf import text_format
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PageAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector import projector_plugin
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.summary.writer.record_writer import RecordWriter

from sat_vg.backbone_finetuning.configs.finetune_config import FIELDS_FREE_ON_RESUME, FinetuneConfig
from sat_vg.backbone_finetuning.reports.projector import Embedding
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.tracking import METRICS, FileTracker
from sat_vg.backbone_finetuning.utils.errors import WriteError


def write_until(folder, state, last_step, steps_per_epoch=4):
    """Log every second step and every epoch, from ``state`` to ``last_step``; the validation of it included."""
    with FileTracker(folder, state) as tracker:
        if state.step_in_epoch == steps_per_epoch:
            write_epoch(tracker, state.step, steps_per_epoch)
        for step in range(state.step + 1, last_step + 1):
            if step % 2 == 0:
                entry = {"epoch": 1 + (step - 1) // steps_per_epoch, "step": step, "train_loss": step / 8}
                tracker.numbers(entry, step, "step")
            if step == 6:
                tracker.numbers({"event": "loss_spike", "epoch": 2, "step": 6, "loss": 9.0}, 6, "event")
            if step % steps_per_epoch == 0:
                write_epoch(tracker, step, steps_per_epoch)


def write_epoch(tracker, step, steps_per_epoch):
    tracker.curves({"f1_by_class/a b": step / 50}, step)
    tracker.text("phases", [f"a text of step {step}"], step)
    tracker.numbers({"epoch": step // steps_per_epoch, "step": step, "val_accuracy": step / 100}, step, "epoch")


def content(folder):
    """The curves, the steps of all that the page of TensorBoard shows, and the lines."""
    events = EventAccumulator(str(folder))
    events.Reload()
    curves = {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    page = PageAccumulator(str(folder))  # it takes the first purge of a run for its start
    page.Reload()
    steps = {tag: [e.step for e in page.Tensors(tag)] for tag in page.Tags()["tensors"]}
    return curves, steps, [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def state_at(step, in_epoch):
    return RunState(step=step, step_in_epoch=in_epoch, epoch=(step - in_epoch) // 4)


def test_neither_gap_nor_double_wherever_a_run_goes_on_from(tmp_path, monkeypatch):
    # TensorBoard orders its files by the second in their names; two processes never start within one.
    seconds = count(2_000_000_000)
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))
    write_until(tmp_path / "whole", RunState(), 12)
    want = content(tmp_path / "whole")
    assert len(want[2]) == 6 + 3 + 1
    assert want[1]["phases/text_summary"] == want[1]["f1_by_class/a b"] == [4, 8, 12]
    assert set(want[0]) == {"step/train_loss", "epoch/val_accuracy", "event/loss", "f1_by_class/a b"}
    for step in range(1, 12):
        for reached in range(step, 13):
            # The state of an epoch's last step is saved before its validation and after it.
            for in_epoch in {step % 4, 4} if step % 4 == 0 else {step % 4}:
                folder = tmp_path / f"{step}_{reached}_{in_epoch}"
                write_until(folder, RunState(), reached)
                with (folder / METRICS).open("a") as file:
                    file.write('{"epoch": 3, "st')  # the line that was being written
                write_until(folder, state_at(step, in_epoch), 12)
                assert content(folder) == want, (step, reached, in_epoch)


@pytest.mark.parametrize("seconds_back", [0, 1, 3600, 10**9], ids=["halted", "a second", "an hour", "decades"])
def test_curves_are_whole_and_in_order_where_the_clock_was_set_back(tmp_path, monkeypatch, seconds_back):
    clock = [2_000_000_000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    write_until(tmp_path / "whole", RunState(), 12)
    want = content(tmp_path / "whole")
    for step, reached in ((3, 6), (5, 9), (9, 10)):
        clock[0] = 2_000_000_000.0
        write_until(tmp_path / f"{step}", RunState(), reached)
        for start in (step, step):  # killed twice
            clock[0] -= seconds_back
            write_until(tmp_path / f"{step}", state_at(start, start % 4), 12)
        assert content(tmp_path / f"{step}") == want, step
        files = sorted((tmp_path / f"{step}").glob("events.*"))
        assert len(files) == 3
        times = [event.wall_time for path in files for event in EventFileLoader(str(path)).Load()]
        assert times == sorted(times)


@pytest.mark.parametrize("damage", ["cut", "rubbish", "a time of NaN", "a time of the far future"])
def test_a_damaged_file_of_events_does_not_hinder_the_next(tmp_path, damage):
    write_until(tmp_path, RunState(), 6)
    (path,) = tmp_path.glob("events.*")
    if damage in ("cut", "rubbish"):
        path.write_bytes(path.read_bytes()[:100] + (b"" if damage == "cut" else b"\xff" * 64))
    else:
        moment = math.nan if "NaN" in damage else 1e300
        record = Event(wall_time=moment, step=1).SerializeToString()
        with path.open("ab") as file:
            RecordWriter(file).write(record)
    before = time.time()
    write_until(tmp_path, state_at(5, 1), 12)
    (newest,) = set(tmp_path.glob("events.*")) - {path}
    times = [event.wall_time for event in EventFileLoader(str(newest)).Load()]
    assert before - 1 <= min(times) <= max(times) <= time.time() + 1


DAMAGED_LINES = [
    "null", "7", "[]", '"text"', "true", "{}", "NaN", "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000,
    '{"epoch": 2}', '{"step": 6}', '{"epoch": 2, "step": NaN}', '{"epoch": 2, "step": null}',
    '{"epoch": 2, "step": "6"}', '{"epoch": 2, "step": 6.5}', '{"epoch": 2, "step": true}',
    '{"epoch": 2, "step": -1}',
    '{"epoch": 2, "step": 1' + "0" * 5000 + "}", '{"epoch": 2, "step": 6, "train_loss": Infinity}',
    '{"epoch": 2, "step": 6, "train_loss": [1]}', '{"epoch": 1, "step": 4, "val_accuracy": null}',
    '{"epoch": 2, "step": 6, "phase": 3}', "\0\0\0", "\udcff\udcfe", "{'epoch': 2, 'step': 6}",
]  # fmt: skip


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("place", ["in the middle", "last"])
def test_a_damaged_line_is_dropped_and_said_wherever_it_is(tmp_path, capsys, place, end):
    write_until(tmp_path / "whole", RunState(), 6)
    lines = (tmp_path / "whole" / METRICS).read_text().splitlines()
    write_until(tmp_path / "want", RunState(), 6)
    write_until(tmp_path / "want", state_at(6, 2), 12)
    want = (tmp_path / "want" / METRICS).read_text()
    number = 2 if place == "in the middle" else len(lines)
    for made, damaged in enumerate(DAMAGED_LINES):
        folder = tmp_path / str(made)
        folder.mkdir()
        content = "\n".join([*lines[:number], damaged, *lines[number:]]) + end
        (folder / METRICS).write_bytes(content.encode("utf-8", "surrogateescape"))
        capsys.readouterr()
        write_until(folder, state_at(6, 2), 12)
        said = capsys.readouterr().out
        assert f"{METRICS}: line {number + 1} is damaged, and dropped" in said, damaged[:50]
        assert (folder / METRICS).read_text() == want, damaged[:50]
    assert made > 20


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp500"])
def test_lines_in_another_encoding_are_dropped_and_said(tmp_path, capsys, encoding):
    write_until(tmp_path, RunState(), 6)
    path = tmp_path / METRICS
    path.write_bytes(path.read_text().encode(encoding))
    write_until(tmp_path, state_at(6, 2), 12)
    assert "damaged, and dropped" in capsys.readouterr().out
    assert [json.loads(line) for line in path.read_text().splitlines()][-1]["step"] == 12


def test_a_line_that_was_being_written_goes_without_a_word(tmp_path, capsys):
    write_until(tmp_path, RunState(), 6)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"epoch": 2, "st')
    write_until(tmp_path, state_at(6, 2), 12)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("left", [None, "", "one epoch"])
def test_lines_that_are_lost_are_said(tmp_path, capsys, left):
    write_until(tmp_path, RunState(), 8)
    path = tmp_path / METRICS
    assert "the end of" not in capsys.readouterr().out
    if left is None:
        path.unlink()
    else:
        lines = [line for line in path.read_text().splitlines() if '"epoch": 2' in line]
        path.write_text("".join(f"{line}\n" for line in lines) if left else "")
    with FileTracker(tmp_path, RunState(epoch=2, step=8)):
        pass
    which = "epoch 1" if left else "2 epochs, the first being 1"
    assert f"{METRICS}: the end of {which} is not in it" in capsys.readouterr().out


def test_a_log_that_is_no_file_is_said(tmp_path):
    for name, make in (("pipe", os.mkfifo), ("folder", os.mkdir)):
        (tmp_path / name).mkdir()
        make(tmp_path / name / METRICS)
        with pytest.raises(WriteError, match="no file"):
            FileTracker(tmp_path / name, RunState())


def test_the_record_is_on_the_disk_before_a_state_is(tmp_path):
    tracker = FileTracker(tmp_path, RunState())
    for step in (2, 4, 6):
        tracker.numbers({"epoch": 1, "step": step, "train_loss": 0.5}, step, "step")
        tracker.sync()
        curves, _, lines = content(tmp_path)  # as another process sees it
        assert curves["step/train_loss"] == [(written, 0.5) for written in range(2, step + 1, 2)]
        assert len(lines) == step // 2
    with tracker:
        pass


def test_a_run_that_is_stopped_before_its_first_step_describes_itself_once(tmp_path, monkeypatch):
    seconds = count(2_000_000_000)
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))
    for _ in range(3):
        with FileTracker(tmp_path, RunState()) as tracker:
            assert tracker.is_empty
            tracker.text("config", ["seed: 0"])
            tracker.charts()
    with FileTracker(tmp_path, RunState(step=3, epoch=1)) as tracker:
        assert not tracker.is_empty
    with FileTracker(tmp_path / "elsewhere", RunState(step=3, epoch=1)) as tracker:
        assert tracker.is_empty
    page = PageAccumulator(str(tmp_path))
    page.Reload()
    assert {tag: len(page.Tensors(tag)) for tag in page.Tags()["tensors"]} == {
        "config/text_summary": 1,
        "custom_scalars__config__": 1,
    }


def test_an_exact_probe_that_was_validated_and_then_killed_is_there_once(tmp_path, monkeypatch):
    seconds = count(2_000_000_000)
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))
    for state in (RunState(), RunState()):  # solved for without a step, and killed before a state was saved
        with FileTracker(tmp_path, state) as tracker:
            tracker.numbers({"epoch": 1, "step": 0, "val_accuracy": 0.5}, 0, "epoch")
    with FileTracker(tmp_path, RunState(epoch=1)) as tracker:  # saved after it
        tracker.numbers({"epoch": 2, "step": 4, "val_accuracy": 0.6}, 4, "epoch")
    curves, steps, lines = content(tmp_path)
    assert [step for step, _ in curves["epoch/val_accuracy"]] == steps["epoch/val_accuracy"] == [0, 4]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_a_figure_is_a_sharp_file_and_a_picture_of_a_cards_width(tmp_path):
    with FileTracker(tmp_path, RunState()) as tracker:
        tracker.figure("curves", Figure(figsize=(6, 3)), 7)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["images"] == ["pictures/curves"]
    (shown,) = events.Images("pictures/curves")
    assert (shown.step, shown.width, shown.height) == (7, 336, 168)
    with Image.open(tmp_path / "curves.png") as kept:
        assert kept.size == (780, 390)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("size", "card"), [((100, 60), (100, 60)), ((806, 390), (350, 169)), ((2000, 1000), (862, 431))]
)
def test_a_picture_is_kept_as_it_is_and_shown_as_wide_as_a_card(tmp_path, size, card):
    with FileTracker(tmp_path, RunState()) as tracker:
        tracker.figure("drawn", Image.new("RGB", size, "red"), 7)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (shown,) = events.Images("pictures/drawn")
    assert (shown.width, shown.height) == card
    with Image.open(tmp_path / "drawn.png") as kept:
        assert (kept.size, kept.getpixel((5, 5))) == (size, (255, 0, 0))


def test_the_table_of_hyperparameters_begins_with_what_tells_runs_apart(tmp_path):
    config = FinetuneConfig(weights="/home/somebody/secret/weights.pth", log_dir="/home/somebody/logs")
    with FileTracker(tmp_path, RunState()) as tracker:
        tracker.hyperparameters(config.to_dict(), {"val_accuracy": 0.75, "best_epoch": 3}, step=9)
    assert len(list(tmp_path.glob("events*"))) == 1  # TensorBoard follows the newest file of a run only
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("hparam/best_epoch")] == [(9, 3.0)]
    content = {
        name: HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/{name}").plugin_data.content)
        for name in ("experiment", "session_start_info")
    }
    columns = content["experiment"].experiment.hparam_infos
    first = ["backbone", "strategy", "learning_rate", "batch_size", "image_size"]
    assert [column.name for column in columns][:5] == first
    assert [column.name for column in columns if column.differs] == first  # the page sorts by this, and then by name
    values = content["session_start_info"].session_start_info.hparams
    assert set(values) == set(FinetuneConfig.field_names()) - FIELDS_FREE_ON_RESUME
    assert (values["strategy"].string_value, values["pretrained"].string_value) == ("unset", "true")
    assert values["weights"].string_value == "weights.pth"
    assert values["batch_size"].number_value == 32
    assert "somebody" not in str(values)


def test_the_projector_reads_what_is_written(tmp_path):
    names = ["sea", "<script>", "a\tb\nc", "sea", "sea"]
    thumbnails = np.stack([np.full((4, 4, 3), 40 * place, np.uint8) for place in range(5)])
    vectors = np.arange(15.0).reshape(5, 3)
    with FileTracker(tmp_path, RunState()) as tracker:
        for _ in range(2):  # once more leaves one
            tracker.embedding(Embedding("best_model", vectors, {"class": names, "predicted": names}, thumbnails))
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (entry,) = config.embeddings
    assert np.allclose(projector_plugin._read_tensor_tsv_file(str(tmp_path / entry.tensor_path)), vectors)
    rows = (tmp_path / entry.metadata_path).read_text().split("\n")[:-1]
    assert rows[0] == "class\tpredicted"
    assert [row.split("\t")[0] for row in rows[1:]] == ["sea", "<script>", "a\\tb\\nc", "sea", "sea"]
    with Image.open(tmp_path / entry.sprite.image_path) as sprite:
        assert sprite.size == (12, 12)
        assert [sprite.getpixel((4 * (k % 3) + 1, 4 * (k // 3) + 1))[0] for k in range(6)] == [0, 40, 80, 120, 160, 0]
    assert list(entry.sprite.single_image_dim) == [4, 4]


def test_a_log_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "projector").write_text("a file in place of the folder")
    with FileTracker(tmp_path, RunState()) as tracker, pytest.raises(WriteError, match="make room"):
        tracker.embedding(Embedding("best_model", np.ones((2, 2)), {"class": ["a", "b"]}, np.ones((2, 4, 4, 3))))
