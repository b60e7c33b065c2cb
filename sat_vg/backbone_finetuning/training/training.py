"""The components of a training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sat_vg.backbone_finetuning.configs.choices import Metric
from sat_vg.backbone_finetuning.data.loading.mixing import Mixing
from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.batch_sources import BatchSources
from sat_vg.backbone_finetuning.training.checkpoint import RunTensors
from sat_vg.backbone_finetuning.training.ema import NullAverage, WeightAverage
from sat_vg.backbone_finetuning.training.micro_batches import MicroBatches, RestorePoint
from sat_vg.backbone_finetuning.training.optim import Schedule, in_groups_of_today
from sat_vg.backbone_finetuning.training.profiling import NullProfiler, Profiler
from sat_vg.backbone_finetuning.training.replicas import Replica
from sat_vg.backbone_finetuning.training.resizing import Resizing, keep_size
from sat_vg.backbone_finetuning.training.wise_ft import NullStartWeights, StartWeights
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.ranks import Ranks, SingleProcess


@dataclass(frozen=True)
class Training:
    """The components of a training. Built once; only the optimizer changes them.

    Attributes:
        model: on its device.
        optimizer: over all of its parameters.
        scaler: of the loss; enabled in float16 only.
        precision: device and number formats.
        schedule: of the learning rate.
        mixing: Mixup and CutMix.
        plan: which images form which training batch.
        sources: the batch sources of phases.
        seed: the run's.
        loss: ``(logits, targets) ->`` sum over the batch, fp32.
        gradient_clip: largest norm; infinite where clipping is off.
        micro_batches: how many images go through the model at once.
        replica: computes the model's outputs and synchronises processes.
        ranks: the processes that train together.
        average: of the weights, which is validated and saved instead of them.
        start_weights: the weights that the running phase began with.
        profile: takes the times of steps.
        resizing: gives the training images the size of their step.
    """

    model: FineTuneModel
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision
    schedule: Schedule
    mixing: Mixing
    plan: BatchPlan
    sources: BatchSources
    seed: int
    loss: Callable[[Tensor, Tensor], Tensor]
    gradient_clip: float
    micro_batches: MicroBatches
    replica: Replica
    ranks: Ranks = field(default_factory=SingleProcess)
    average: WeightAverage = field(default_factory=NullAverage)
    start_weights: StartWeights = field(default_factory=NullStartWeights)
    profile: Profiler = field(default_factory=NullProfiler)
    resizing: Resizing = keep_size

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Those of the model, looked up once: walking through its modules takes milliseconds."""
        return list(self.model.parameters())

    @cached_property
    def restore_point(self) -> RestorePoint:
        """Undoes a step that ran out of memory."""
        return RestorePoint(self.model, self.optimizer)

    @property
    def tensors(self) -> RunTensors:
        """The tensors of a checkpoint."""
        regroup = partial(in_groups_of_today, model=self.model, optimizer=self.optimizer)
        return RunTensors(self.model.network, self.optimizer, self.scaler, self.average, self.start_weights, regroup)


@dataclass(frozen=True)
class Stopping:
    """What "best" means and when to stop before the last epoch.

    Attributes:
        metric: of the validation.
        patience: epochs of a phase without improvement; 0: never stop early.
        min_delta: for patience alone: by how much the metric must be exceeded to count as improved.
    """

    metric: Metric
    patience: int
    min_delta: float

    @property
    def higher_is_better(self) -> bool:
        """Whether the best is the highest value."""
        return self.metric != "val_loss"
