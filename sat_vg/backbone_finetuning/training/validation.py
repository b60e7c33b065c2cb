"""A pass over the validation images."""

import math
from collections.abc import Sequence
from functools import partial

import torch

from sat_vg.backbone_finetuning.evaluation.metrics import Validation
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.batch_sources import BatchSource, SizedBatches, image_values
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.image_outputs import OutputRecorder
from sat_vg.backbone_finetuning.training.replicas import Replica, SingleReplica
from sat_vg.backbone_finetuning.training.step_results import REMEDY
from sat_vg.backbone_finetuning.utils.errors import NonFiniteLossError
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest, StopRequested
from sat_vg.backbone_finetuning.utils.terminal import progress


@torch.no_grad()  # not inference_mode: FSDP gathers weights into memory that is trained in, too
def evaluate(
    model: FineTuneModel,
    batches: SizedBatches,
    precision: Precision,
    interrupt: InterruptRequest | None = None,
    source: BatchSource | None = None,
    replica: Replica | None = None,
    recorders: Sequence[OutputRecorder] = (),
) -> Validation:
    """Loss, accuracy and scores by class over all batches of all processes.

    Args:
        model: on its device.
        batches: of images, or of what ``source`` gives: this process's share.
        precision: device and formats.
        interrupt: checked after each batch.
        source: of the batches; unset: they are of images, which the whole model takes.
        replica: of the processes that share the batches; unset: this one is alone.
        recorders: take the outputs on each batch.

    Raises:
        StopRequested: a signal has come.
    """
    model.eval()
    replica = replica or SingleReplica(model.training_outputs)
    interrupt = interrupt or InterruptRequest()
    values, start = (partial(image_values, model, precision), 0) if source is None else (source.values, source.start)
    task = TASKS[model.task]
    sums = task.sums(model.num_classes, precision.device)
    for batch in progress(
        replica.lockstep_batches(batches, interrupt), total=len(batches), desc="validation", unit="batch"
    ):
        batch = batch.to(precision.device)
        with precision.autocast():
            vectors, logits = model.vectors_and_logits(values(batch), start)
            logits = logits.float()
        sums.add(logits, batch.targets, task.loss(logits, batch.targets))
        for recorder in recorders:
            recorder.add(batch, vectors, logits)
    if any(replica.ranks.all_reduce_max(interrupt.requested)):
        raise StopRequested
    sums.gather(replica.ranks)
    return sums.result()


def require_finite(validation: Validation, state: RunState) -> None:
    """Refuse to go on from a validation loss that is NaN or infinite.

    Raises:
        NonFiniteLossError: it is.
    """
    if not math.isfinite(validation.loss):
        raise NonFiniteLossError(
            f"the validation loss is {validation.loss} after step {state.step} (epoch {state.epoch + 1}). The "
            f"checkpoints from before are untouched. {REMEDY}"
        )
