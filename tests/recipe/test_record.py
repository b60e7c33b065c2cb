"""What a run leaves in TensorBoard and beside it, read back by TensorBoard's own reader."""

import pytest
import torch
from conftest import COLOURS, TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.recipe


def events_of(run):
    events = EventAccumulator(str(run.folder / "logs"))
    events.Reload()
    return events


def text_of(events, name):
    return events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()


def test_tensorboards_own_reader_finds_everything(train_here, class_folders):
    for split in ("train", "val"):
        (class_folders / split / "sea").rename(class_folders / split / "<script>alert(1)\n")
    run = train_here("--dataset_path", class_folders, "--backbone", "resnet18", "--strategy", "lp_ft",
                     "--probe_solver", "sgd", "--layer_decay", 0.5, "--head_lr_scale", 3, draws=True)  # fmt: skip
    assert run.code == 0, run.err
    events = events_of(run)
    scalars = set(events.Tags()["scalars"])
    names = ("val_accuracy", "val_loss", "macro_f1", "train_loss", "learning_rate", "images_per_second", "seconds")
    of_steps = ("train_loss", "learning_rate", "gradient_norm", "images_per_second")
    stages = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
    classes = ("<script>alert(1)\\n", "field", "town")
    results = ("val_accuracy", "val_loss", "macro_f1", "best_epoch")
    assert scalars == {
        *(f"epoch/{name}" for name in names),
        *(f"step/{name}" for name in of_steps),
        *(f"f1_by_class/{name}" for name in classes),
        *(f"{group}/{stage}" for stage in stages for group in ("update_ratio", "learning_rate_by_stage")),
        *(f"hparam/{name}" for name in results),
        "memory/peak_resident_gib",
    }
    for name in names:
        curve = events.Scalars(f"epoch/{name}")
        assert [e.step for e in curve] == [5, 10]
        assert [e.value for e in curve] == pytest.approx([line[name] for line in run.epochs])
    assert [e.step for e in events.Scalars("update_ratio/head")] == [5, 10]
    assert [e.step for e in events.Scalars("update_ratio/layer4")] == [10]  # frozen before
    rates = {stage: events.Scalars(f"learning_rate_by_stage/{stage}")[-1].value for stage in stages}
    run_rate = run.epochs[-1]["learning_rate"]
    assert rates["head"] == pytest.approx(3 * run_rate)
    assert rates["layer3"] == pytest.approx(run_rate / 2)
    f1 = [events.Scalars(f"f1_by_class/{name}")[-1].value for name in classes]
    assert sum(f1) / 3 == pytest.approx(run.epochs[-1]["macro_f1"])
    assert len(list((run.folder / "logs").glob("events*"))) == 1


def test_tensorboard_tells_what_the_run_is_and_shows_the_best_model(train_here, class_folders, tmp_path):
    from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig

    run = train_here("--dataset_path", class_folders, "--backbone", "resnet18", "--strategy", "progressive",
                     "--learning_rate", 1e-9, "--min_lr", 0, draws=True)  # fmt: skip
    assert run.code == 0, run.err
    events, logs = events_of(run), run.folder / "logs"
    yaml = tmp_path / "again.yaml"
    yaml.write_text("".join(line[4:] + "\n" for line in text_of(events, "config").splitlines()))
    assert FinetuneConfig.from_yaml(yaml).to_dict() == torch.load(run.best_model, weights_only=True)["config"]
    described = text_of(events, "run")
    for part in ("27 ", "resnet18", "weights", "phase 2: last_5, 1 epoch, trains stem, layer1", "steps: 5",
                 "device: cpu", f"torch {torch.__version__}"):  # fmt: skip
        assert part in described, part
    assert all(line.startswith("    ") for line in described.splitlines())  # Markdown's code, whatever stands there
    phases = events.Tensors("phases/text_summary")
    assert [event.step for event in phases] == [5, 10]
    assert b"from epoch 2 on: last_5, 1 epoch" in phases[1].tensor_proto.string_val[0]

    pictures = ("confusion_matrix", "learning_curves", "mistakes", "training_images")
    assert sorted(events.Tags()["images"]) == [f"pictures/{name}" for name in pictures]
    for name in pictures:
        (shown,) = events.Images(f"pictures/{name}")[-1:]
        assert shown.encoded_image_string.startswith(b"\x89PNG")
        assert 200 < shown.width < 360
    tensors = set(events.Tags()["tensors"])
    assert {"precision_recall/all classes", *(f"precision_recall_by_class/{n}" for n in COLOURS)} <= tensors
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"epoch/train_loss" in layout
    assert b"epoch/val_loss" in layout
    rows = (logs / "projector/metadata.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["class", *(name for name in COLOURS for _ in range(3))]
    # What is shown is the best model: its predictions on the validation images, in their order.
    right = sum(row.split("\t")[0] == row.split("\t")[1] for row in rows[1:])
    assert right / 9 == pytest.approx(max(line["val_accuracy"] for line in run.epochs))
    assert len((logs / "projector/tensors.tsv").read_text().splitlines()) == 9
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_a_run_of_one_epoch_has_no_curves_and_a_second_one_moves_all_of_it_aside(train_here, class_folders):
    options = (*TINY, "--dataset_path", class_folders, "--num_epochs", 1, "--log_every", 1000)
    run = train_here(*options)
    logs, events = run.folder / "logs", events_of(run)
    assert b"full" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.content  # not "unset"
    charts = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"(step|epoch)/learning_rate" in charts
    assert "step/learning_rate" not in events.Tags()["scalars"]  # too few steps for it, so the chart has the epochs'
    assert "epoch/learning_rate" in events.Tags()["scalars"]
    assert not (logs / "learning_curves.png").exists()
    first = {path.name for path in logs.iterdir()}
    assert {"projector", "projector_config.pbtxt", "metrics.jsonl"} <= first
    stamp = (logs / "projector_config.pbtxt").stat().st_mtime_ns
    assert train_here(*options).code == 0  # finished: nothing is drawn again
    assert (logs / "projector_config.pbtxt").stat().st_mtime_ns == stamp
    assert train_here(*options, "--resume", "never").code == 0
    assert {path.name for path in (logs / "earlier_run_1").iterdir()} == first


def test_what_is_shown_of_a_run_is_the_same_after_an_interruption(train_here, class_folders):
    options = (*TINY, "--dataset_path", class_folders, "--save_every_steps", 3, "--max_checkpoints", 9,
               "--num_epochs", 3, "--ema_decay", 0.5)  # fmt: skip
    whole = train_here(*options, draws=True)
    assert whole.code == 0, whole.err
    want, lines = shown_in(whole), [{**line, "seconds": 0, "images_per_second": 0} for line in whole.lines]
    for step in (6, 5):  # within an epoch and at the end of one, before states that lie there already
        run = train_here(*options, "--resume", whole.folder / f"ckpt/step_{step:08d}.pt", draws=True)
        assert run.code == 0, run.err
        assert [{**line, "seconds": 0, "images_per_second": 0} for line in run.lines] == lines
        assert shown_in(run) == want, step


def test_outputs_of_a_best_epoch_before_the_resume_are_computed_again(train_here, class_folders, monkeypatch):
    from sat_vg.backbone_finetuning.training import run_summary

    passes = []
    compute = run_summary.outputs_of_file
    monkeypatch.setattr(run_summary, "outputs_of_file", lambda *where: passes.append(where) or compute(*where))
    options = (*TINY, "--dataset_path", class_folders, "--save_every_steps", 3, "--max_checkpoints", 9,
               "--num_epochs", 3, "--optimizer", "sgd", "--learning_rate", 1e-30, "--min_lr", 0)  # fmt: skip
    whole = train_here(*options, draws=True)
    assert whole.code == 0, whole.err
    assert not passes
    assert torch.load(whole.best_model, weights_only=True)["metrics"]["epoch"] == 1  # nothing changes after it
    want = shown_in(whole)
    run = train_here(*options, "--resume", whole.folder / "ckpt/step_00000006.pt", draws=True)
    assert run.code == 0, run.err
    assert len(passes) == 1
    assert shown_in(run) == want


def shown_in(run):
    """All that the page of TensorBoard shows, but for times and memory."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PageAccumulator

    page = PageAccumulator(str(run.folder / "logs"), size_guidance={"tensors": 0})
    page.Reload()
    found = {
        tag: [(event.step, event.tensor_proto.SerializeToString()) for event in page.Tensors(tag)]
        for tag in page.Tags()["tensors"]
        if not tag.endswith(("seconds", "images_per_second")) and not tag.startswith("memory/")
    }
    assert len(found) > 20
    return found
