import json
from itertools import count

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sat_vg.backbone_finetuning.engine.checkpoint import RunState
from sat_vg.backbone_finetuning.engine.tracking import METRICS, Tracker


def write_until(folder, state, last_step, steps_per_epoch=4):
    """Log every second step and every epoch, from ``state`` to ``last_step``; the validation of it included."""
    with Tracker(folder, state) as tracker:
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
    tracker.numbers({"epoch": step // steps_per_epoch, "step": step, "val_accuracy": step / 100}, step, "epoch")


def content(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    curves = {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return curves, [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def state_at(step, in_epoch):
    return RunState(step=step, step_in_epoch=in_epoch, epoch=(step - in_epoch) // 4)


def test_neither_gap_nor_double_wherever_a_run_goes_on_from(tmp_path, monkeypatch):
    # TensorBoard orders its files by the second in their names; two processes never start within one.
    seconds = count(2_000_000_000)
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))
    write_until(tmp_path / "whole", RunState(), 12)
    want = content(tmp_path / "whole")
    assert len(want[1]) == 6 + 3 + 1
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


def test_the_record_is_on_the_disk_before_a_state_is(tmp_path):
    tracker = Tracker(tmp_path, RunState())
    for step in (2, 4, 6):
        tracker.numbers({"epoch": 1, "step": step, "train_loss": 0.5}, step, "step")
        tracker.sync()
        curves, lines = content(tmp_path)  # as another process sees it
        assert curves["step/train_loss"] == [(written, 0.5) for written in range(2, step + 1, 2)]
        assert len(lines) == step // 2
    with tracker:
        pass
