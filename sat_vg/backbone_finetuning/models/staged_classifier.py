"""A torchvision network with a new classifier, run stage by stage; any of its stages can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sat_vg.backbone_finetuning.models.folded import fold_batch_norm
from sat_vg.backbone_finetuning.models.freezing import apply_trainable, check_stage_names, in_eval_mode, keep_in_eval
from sat_vg.backbone_finetuning.models.image_batches import require_normalised
from sat_vg.backbone_finetuning.models.networks.table import BackboneRow, head_parameters, present_auxiliary_heads
from sat_vg.backbone_finetuning.models.probabilities import PROBABILITIES, TaskName
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.models.views import views_of
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing

Model = TypeVar("Model", bound="StagedClassifier")


class StagedClassifier(nn.Module):
    """``images [B, C, H, W], normalised → logits [B, num_classes]``, by way of the stages. All are trained at first.

    Args:
        row: of the table of backbones.
        network: built from it.
        preprocessing: what images go through before they get here.
        class_names: in the order of the outputs.
        dropout: probability of dropping a pooled feature before the classifier.
        task: ``single_label``: an image has one class; ``multi_label``: any number of them.

    Attributes:
        stages: stages of the backbone, in order of depth.
        trainable_stages: names of those that are trained now.
        temperature: divisor of the logits in ``predict_probabilities``; 1 unless the model was calibrated.
        head_parameter_names: names of the classifier's parameters, auxiliary ones included.
    """

    def __init__(
        self,
        row: BackboneRow,
        network: nn.Module,
        preprocessing: Preprocessing,
        class_names: tuple[str, ...],
        dropout: float,
        task: TaskName,
    ) -> None:
        super().__init__()
        self.row, self.network = row, network
        self.stages = row.family.stages(network)
        self.preprocessing = preprocessing
        self.class_names = class_names
        self.dropout = nn.Dropout(dropout)
        self.task: TaskName = task
        self.temperature = 1.0
        self.head_parameter_names = head_parameters(network, row.family)
        self._auxiliary_heads = present_auxiliary_heads(network, row.family)
        self._frozen_modules: list[nn.Module] = []
        self._folded: tuple[nn.Module, ...] = ()  # in a tuple, so that it is no part of the model
        self.set_trainable(self.stage_names)

    @property
    def backbone(self) -> str:
        """Name of the backbone, as in torchvision."""
        return self.row.name

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return len(self.preprocessing.bands)

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return len(self.class_names)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of all stages, in order of depth."""
        return tuple(stage.name for stage in self.stages)

    @property
    def num_frozen_stages(self) -> int:
        """How many stages before the first trained one; they need no gradients at all."""
        flags = [name in self.trainable_stages for name in self.stage_names]
        return flags.index(True) if any(flags) else len(flags)

    def set_trainable(self, stages: Sequence[str], keeps_statistics: bool = False) -> None:
        """Train these stages and the classifier; freeze all other stages.

        Args:
            stages: their names.
            keeps_statistics: the batch norm of these stages computes with its running statistics, which stay; its
                scale and shift are trained.

        Raises:
            ConfigError: a name is no stage of this backbone.
        """
        check_stage_names(stages, self.stage_names, "trainable stages")
        self.drop_folded()
        self.trainable_stages = tuple(name for name in self.stage_names if name in stages)
        self._frozen_modules = apply_trainable(self.network, self.stages, self.trainable_stages)
        for head in self._auxiliary_heads:
            module = self.network.get_submodule(head.module)
            is_used = self.stage_names.index(head.after_stage) >= self.num_frozen_stages
            module.requires_grad_(is_used)
            if not is_used:
                self._frozen_modules.extend(module.modules())
        if keeps_statistics:
            self._frozen_modules.extend(m for m in self.network.modules() if isinstance(m, _BatchNorm))
        keep_in_eval(self._frozen_modules)

    def train_from(self, first_stage: str) -> None:
        """Train this stage, all deeper ones and the classifier; freeze what comes before.

        Raises:
            ConfigError: there is no such stage.
        """
        check_stage_names([first_stage], self.stage_names, "first_stage")
        self.set_trainable(self.stage_names[self.stage_names.index(first_stage) :])

    def fold_frozen(self, dtype: torch.dtype) -> None:
        """From now on run the frozen stages before the first trained one with batch norm folded, see ``folded``.

        Until ``drop_folded`` or ``set_trainable``, and not after a change of their weights.

        Args:
            dtype: that autocast runs them in. In float32 nothing is folded: the results stay the same to the bit.
        """
        self.drop_folded()
        if dtype is not torch.float32:
            copied = fold_batch_norm(self.network, self.stages[: self.num_frozen_stages], dtype)
            self._folded = () if copied is None else (copied,)

    def drop_folded(self) -> None:
        """Run the frozen stages as they are again."""
        self._folded = ()

    @property
    def is_folded(self) -> bool:
        """Whether frozen stages run with batch norm folded."""
        return bool(self._folded)

    def train(self: Model, mode: bool = True) -> Model:
        """Switch training mode; frozen stages stay in eval mode."""
        super().train(mode)
        keep_in_eval(self._frozen_modules)
        return self

    def run_stages(self, value: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """The output of stage ``stop - 1``, from images or from the output of stage ``start - 1``."""
        for stage in self.stages[start:stop]:
            value = stage.run(self.network, value)
        return value

    def forward(self, value: Tensor, start: int = 0) -> Tensor:
        """``images [B, C, H, W]``, normalised → logits ``[B, num_classes]``; ``start``: see ``training_outputs``."""
        return self.forward_head(self.forward_pooled(value, start))

    @torch.no_grad()
    def predict_probabilities(self, images: Tensor, views: int = 1) -> Tensor:
        """Probabilities of the classes, in eval mode; the model is left as it was.

        Args:
            images: ``[B, C, H, W]``, normalised, on the model's device.
            views: average over so many of each image's flips and quarter turns, 8 at the most; of images that are not
                square over the four that keep their size. Overhead images have no "up", so all are as good.

        Returns:
            float32 ``[B, num_classes]``: softmax of the logits divided by ``temperature``, so rows sum to 1; where an
            image can have several classes, their sigmoid.

        Raises:
            ConfigError: there are not so many views.
        """
        shares = []
        with in_eval_mode(self):
            for view in views_of(images, views):
                logits: Tensor = self(view)
                shares.append(PROBABILITIES[self.task](logits.float() / self.temperature))
        return shares[0] if len(shares) == 1 else torch.stack(shares).mean(0)

    def forward_pooled(self, value: Tensor, start: int = 0) -> Tensor:
        """``images [B, C, H, W]``, normalised → the vector ``[B, D]`` that the classifier sees."""
        if start == 0:
            require_normalised(value, self.in_channels, self.network)
        if start > len(self.stages):
            return value
        return self.pool(self.run_stages(self.run_frozen(value, start), start=max(start, self.num_frozen_stages)))

    def vectors_and_logits(self, value: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """The vectors ``[B, D]`` that the classifier sees, and its logits ``[B, num_classes]``; see ``forward``."""
        vectors = self.forward_pooled(value, start)
        return vectors, self.forward_head(vectors)

    def pool(self, features: Tensor) -> Tensor:
        """The last stage's output → the vector ``[B, D]`` that the classifier sees; without parameters."""
        return self.row.family.pool(self.network, features)

    def training_outputs(self, value: Tensor, start: int = 0) -> tuple[tuple[float, Tensor], ...]:
        """What the loss is taken of: the logits, and those of auxiliary heads where the backbone has some.

        Args:
            value: images ``[B, C, H, W]``, normalised, or the output of the first ``start`` stages.
            start: how many stages lie behind ``value``; one more than there are: ``value`` is the pooled vector.

        Returns:
            The weight of each loss with the logits ``[B, num_classes]``; the classifier's come first, with weight 1.
        """
        if start > len(self.stages):
            return ((1.0, self.forward_head(value)),)
        value, auxiliary = self.run_frozen(value, start), []
        for stage in self.stages[max(start, self.num_frozen_stages) :]:
            value = stage.run(self.network, value)
            for head in self._auxiliary_heads:
                if head.after_stage == stage.name:
                    auxiliary.append((head.weight, self.network.get_submodule(head.module)(value)))
        return ((1.0, self.forward_head(self.pool(value))), *auxiliary)

    def run_frozen(self, value: Tensor, start: int = 0) -> Tensor:
        """The output of the frozen stages before the first trained one, without a graph."""
        keep_in_eval(self._frozen_modules)  # someone may have called train() on a part of the network
        num_frozen = self.num_frozen_stages
        with torch.set_grad_enabled(False if num_frozen else torch.is_grad_enabled()):
            for stage in self.stages[start:num_frozen]:
                value = stage.run(self._folded[0] if self._folded else self.network, value)
            return value

    def forward_head(self, pooled: Tensor) -> Tensor:
        """``pooled [B, D]`` → logits ``[B, num_classes]``."""
        classifier: nn.Module = find_member(self.network, self.row.family.classifier)
        logits: Tensor = classifier(self.dropout(pooled))
        return logits

    @property
    def classifier_has_bias(self) -> bool:
        """Whether the last linear layer adds a bias."""
        return find_member(self.network, self.row.family.classifier).bias is not None

    @torch.no_grad()
    def set_classifier(self, weight: Tensor, bias: Tensor) -> None:
        """Put ``weight [num_classes, D]`` and ``bias [num_classes]`` into the last linear layer, if it has a bias."""
        classifier: nn.Linear = find_member(self.network, self.row.family.classifier)
        classifier.weight.copy_(weight)
        if classifier.bias is not None:
            classifier.bias.copy_(bias)

    def parameter_counts(self, trained_only: bool = False) -> dict[str, int]:
        """Number of parameters by stage, and of the classifier (and auxiliary ones) under ``head``.

        Args:
            trained_only: leave out those that get no gradient now.
        """
        parameters = dict(self.network.named_parameters())
        named = {stage.name: [p for _, p in stage.named_parameters(self.network)] for stage in self.stages}
        named["head"] = [parameters[name] for name in self.head_parameter_names]
        return {
            part: sum(p.numel() for p in owned if p.requires_grad or not trained_only)
            for part, owned in named.items()
        }
