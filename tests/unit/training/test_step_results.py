import math

import pytest
import torch

from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.record import SaveSchedule
from sat_vg.backbone_finetuning.training.step_results import PendingSteps, StepResult
from sat_vg.backbone_finetuning.utils.errors import NonFiniteLossError
from sat_vg.backbone_finetuning.utils.ranks import SingleProcess


def flush(pending, state, steps, batch=2):
    """Settle steps given as (loss of the batch, norm)."""
    for loss, norm in steps:
        pending.add(state.step, 0.01, StepResult(torch.tensor(loss), torch.tensor(norm)), torch.arange(batch))
        state.step += 1
    return pending.flush(state)


def make(scales_loss=False):
    return PendingSteps(lambda index: f"image_{index}.jpg", scales_loss, SingleProcess()), RunState()


def test_losses_add_up_however_they_are_grouped():
    losses = [(0.1 * n + 1 / 3, 1.0) for n in range(30)]
    one, whole = make()
    flush(one, whole, losses)
    two, parts = make()
    for start in range(0, 30, 7):
        flush(two, parts, losses[start : start + 7])
    assert whole == parts
    assert whole.window_images == 60
    assert one.flush(whole) == []


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [
        (math.nan, 1.0, "loss is nan"),
        (math.inf, math.nan, "loss is inf"),
        (1.0, math.nan, "norm of the gradient is nan"),
        (1.0, math.inf, "norm of the gradient is inf"),
    ],
)
def test_what_leaves_the_numbers_stops_the_run(loss, norm, what):
    pending, state = make()
    with pytest.raises(NonFiniteLossError) as caught:
        flush(pending, state, [(1.0, 1.0), (loss, norm), (1.0, 1.0)])
    for part in (what, "at step 1 ", "epoch 1", "learning rate 0.01", "image_1.jpg", "Lower --learning_rate"):
        assert part in str(caught.value), part


def test_an_overflow_under_loss_scaling_is_counted_and_not_an_error():
    pending, state = make(scales_loss=True)
    flush(pending, state, [(1.0, math.inf), (1.0, math.nan), (1.0, 2.0), (1.0, math.inf)])
    assert (state.skipped_steps, state.skipped_in_a_row, pending.gradient_norm) == (3, 1, None)
    flush(pending, state, [(1.0, 0.5)])
    assert (state.skipped_in_a_row, pending.gradient_norm) == (0, 0.5)
    state.end_epoch()
    assert state.skipped_steps == 0
    with pytest.raises(NonFiniteLossError, match="norm of the gradient"):  # a scale of 0 is no scale any more
        flush(pending, state, [(1.0, math.inf)] * 40)
    with pytest.raises(NonFiniteLossError, match="loss is nan"):
        flush(*make(scales_loss=True), [(math.nan, math.inf)])


def test_spikes_are_reported_a_few_times_an_epoch_and_survive_a_resume():
    pending, state = make()
    assert flush(pending, state, [(2.0, 1.0)] * 10 + [(200.0, 1.0)]) == []  # too few to compare with
    assert flush(pending, state, [(2.0, 1.0)] * 30 + [(19.0, 1.0)]) == []
    (spike,) = flush(pending, state, [(24.0, 1.0)])
    assert (spike.step, spike.loss, spike.median) == (42, 12.0, 1.0)
    again = RunState(**{**vars(state), "recent_losses": list(state.recent_losses)})
    steps = [(24.0, 1.0)] * 5
    assert flush(pending, state, steps) == flush(pending, again, steps)
    assert state.spikes == 3
    state.end_epoch()
    assert len(flush(pending, state, steps)) == 3
    assert len(state.recent_losses) <= 100


def test_a_few_wrong_images_among_well_learned_ones_are_no_spike():
    pending, state = make()
    assert flush(pending, state, [(0.02, 1.0)] * 30 + [(1.8, 1.0)]) == []
    assert len(flush(pending, state, [(2.2, 1.0)])) == 1


def test_saves_are_due_by_steps_or_by_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    never, steps, minutes = SaveSchedule(0, 0), SaveSchedule(3, 0), SaveSchedule(0, 60)
    assert [step for step in range(1, 10) if steps.is_due(step)] == [3, 6, 9]
    now[0] += 59
    assert not minutes.is_due(1)
    now[0] += 1
    assert minutes.is_due(1)
    assert minutes.is_due(2)
    minutes.note_save()
    assert not minutes.is_due(3)
    assert not any(never.is_due(step) for step in range(10))
