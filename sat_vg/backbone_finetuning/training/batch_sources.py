"""Sources of batches: images, or the outputs of the frozen stages, computed once per phase."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.features.cache import (
    FeatureShape,
    NotKept,
    StoredFeatures,
    compute_features,
    find_features,
)
from sat_vg.backbone_finetuning.data.loading.loaders import Batch, ImageBatches, Pass, target_rows
from sat_vg.backbone_finetuning.data.loading.sampling import Part
from sat_vg.backbone_finetuning.data.reading.decoded_cache import in_words
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache, NoRoom
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.ranks import Ranks, SingleProcess
from sat_vg.backbone_finetuning.utils.stop_signals import StopRequested
from sat_vg.backbone_finetuning.utils.terminal import say


class SizedBatches(Iterable[Batch], Sized, Protocol):
    """Batches whose number is known."""


def image_values(model: FineTuneModel, precision: Precision, batch: Batch) -> Tensor:
    """Normalised images ``[B, C, H, W]`` of a batch on the device."""
    return precision.place_images(model.preprocessing.normalise(batch.images))


@dataclass(frozen=True)
class ImageSource:
    """Batches of images, for the whole model.

    Attributes:
        model: whose preprocessing they get.
        precision: device and formats.
        batches: of images.
        num_views: augmentations that take turns from epoch to epoch; 0: each epoch has its own.
        start: number of stages that are already applied: 0.
    """

    model: FineTuneModel
    precision: Precision
    batches: ImageBatches
    num_views: int = 0
    start: int = 0

    def training(self, epoch: int, first_batch: int) -> Pass:
        """This process's share of an epoch's batches, from any one on."""
        return self.batches.training(epoch, epoch % self.num_views if self.num_views else epoch, first_batch)

    def validation(self) -> Pass:
        """This process's share of the validation images."""
        return self.batches.in_order(Part.VALIDATION).shared(self.batches.plan.share)

    def values(self, batch: Batch) -> Tensor:
        """Normalised images ``[B, C, H, W]`` of a batch on the device."""
        return image_values(self.model, self.precision, batch)


@dataclass(frozen=True)
class FeaturePass:
    """One pass over stored features, in the batches that the images would have had."""

    stored: StoredFeatures
    targets: Tensor
    view: int
    indices: Sequence[Sequence[int]]

    def __iter__(self) -> Iterator[Batch]:
        for few in self.indices:
            places = torch.tensor(few)
            yield Batch(self.stored.get(self.view, places), self.targets[places], places)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class FeatureSource:
    """Batches of stored outputs of the frozen stages, for the rest of the model.

    Attributes:
        batches: of the images, for their order and labels.
        stored: features of the training images in all views, and of the validation images.
        start: number of stages that are already applied, as in ``FineTuneModel.training_outputs``.
    """

    batches: ImageBatches
    stored: dict[Part, StoredFeatures]
    start: int

    def training(self, epoch: int, first_batch: int) -> FeaturePass:
        """This process's share of an epoch's batches, from any one on."""
        view = epoch % self.stored[Part.TRAINING].num_views
        return self._pass(Part.TRAINING, view, self.batches.plan.own_batches(epoch)[first_batch:])

    def validation(self) -> FeaturePass:
        """This process's share of the validation images."""
        return self._pass(
            Part.VALIDATION, 0, self.batches.in_order(Part.VALIDATION).shared(self.batches.plan.share).indices
        )

    def values(self, batch: Batch) -> Tensor:
        """The features ``[B, ...]`` as they are."""
        return batch.images

    def _pass(self, part: Part, view: int, indices: Sequence[Sequence[int]]) -> FeaturePass:
        split = self.batches.parts[part].split
        targets = target_rows(split)[torch.tensor(split.labels)]
        return FeaturePass(self.stored[part], targets, view, indices)


BatchSource = ImageSource | FeatureSource


class PhaseSources(NamedTuple):
    """Where a phase's batches come from; validation images do not change, so theirs may be stored alone."""

    training: BatchSource
    validation: BatchSource


@dataclass(frozen=True)
class FeatureSpec:
    """Features to store for a phase.

    Attributes:
        start: number of stages that are already applied; one more than there are: the pooled vector.
        shape: of one image's features.
        num_views: of each part whose features are stored.
        num_bytes: of all.
        why_not_training: why those of the training images are not stored; empty where they are, or nothing is to say.
    """

    start: int
    shape: FeatureShape
    num_views: Mapping[Part, int]
    num_bytes: int
    why_not_training: str = ""


@dataclass(frozen=True)
class BatchSources:
    """Chooses the batch source of each phase.

    Attributes:
        model: the model that is trained.
        precision: device and formats.
        batches: of the images.
        num_views: augmentations of each training image that take turns in phases whose first stages are frozen; 1
            where there is no augmentation; 0: every epoch has its own, so nothing can be stored.
        cache: where features are stored; None: nowhere.
        images_key: a hash of all images in their order, with all that is done to them before the model.
        mixes_images: whether steps change training images once more, so that theirs cannot be stored.
        ranks: the processes that train together.
    """

    model: FineTuneModel
    precision: Precision
    batches: ImageBatches
    num_views: int
    cache: BoundedCache | None
    images_key: str
    mixes_images: bool = False
    ranks: Ranks = field(default_factory=SingleProcess)

    def for_phase(self, phase: Phase, should_stop: Callable[[], bool]) -> PhaseSources:
        """The sources of a phase, to which the model is set. Raises StopRequested where a signal came meanwhile."""
        images = self.image_source()
        spec = self.feature_spec(phase)
        if isinstance(spec, str):
            return PhaseSources(images, images)
        say(f"phase {phase.name}: {self._describe(spec, phase)}")
        stored = {}
        for part, views in spec.num_views.items():
            features = self._features(spec, part, views, should_stop)
            was_stopped, not_kept = self.ranks.all_reduce_max(
                features is None, isinstance(features, (NoRoom, NotKept))
            )
            if was_stopped:
                raise StopRequested
            if not_kept:  # even if only on another machine: all processes use the same source
                said = "another machine cannot keep features"
                if isinstance(features, (NoRoom, NotKept)):
                    said = _why(features) if isinstance(features, NoRoom) else self._why_not_kept(features)
                say(f"phase {phase.name}: frozen stages run in every epoch: {said}")
                return PhaseSources(images, images)
            assert isinstance(features, StoredFeatures)
            stored[part] = features
        source = FeatureSource(self.batches, stored, spec.start)
        return PhaseSources(source if Part.TRAINING in stored else images, source)

    def image_source(self) -> ImageSource:
        """The source that runs the whole model, with the stages that it is set to."""
        views = self.num_views if self.model.num_frozen_stages else 0
        return ImageSource(self.model, self.precision, self.batches, views)

    def feature_spec(self, phase: Phase) -> FeatureSpec | str:
        """The features to store for a phase, to which the model is set; or the reason why none are."""
        num_frozen = self.model.num_frozen_stages
        if phase.method != "gradient" or not num_frozen or self.cache is None or phase.epochs == 1:
            return ""
        start = num_frozen + (num_frozen == len(self.model.stages))
        shape = FeatureShape.of(self._run(self._example(), start))
        wanted = {Part.TRAINING: self.num_views, Part.VALIDATION: 1}
        why_not = ""
        if not self.num_views and not self.mixes_images:
            why_not = (
                "training images are augmented anew; with --cached_views 4 four versions of each would take turns"
            )
        if self.mixes_images or not 0 < self.num_views < phase.epochs:
            del wanted[Part.TRAINING]
        elif (num_bytes := self._num_bytes(shape, wanted)) > self.cache.max_bytes:
            why_not = _why(NoRoom(num_bytes, self.cache.max_bytes, "limit"))
            del wanted[Part.TRAINING]
        num_bytes = self._num_bytes(shape, wanted)
        if num_bytes > self.cache.max_bytes:
            return why_not or _why(NoRoom(num_bytes, self.cache.max_bytes, "limit"))
        return FeatureSpec(start, shape, wanted, num_bytes, why_not)

    def _num_bytes(self, shape: FeatureShape, num_views: Mapping[Part, int]) -> int:
        return shape.num_bytes * sum(views * len(self.batches.parts[part]) for part, views in num_views.items())

    def describe(self, phase: Phase) -> str:
        """One line on the features stored for a phase, or why there are none; empty where storing gains nothing."""
        spec = self.feature_spec(phase)
        if isinstance(spec, str):
            return spec and f"frozen stages run in every epoch: {spec}"
        return self._describe(spec, phase)

    def _describe(self, spec: FeatureSpec, phase: Phase) -> str:
        assert self.cache is not None
        views = spec.num_views.get(Part.TRAINING, 0)
        times = "once" if views < 2 else f"{views} times"
        where = "" if views else " on the validation images"
        shape, kind = "x".join(map(str, spec.shape.shape)), str(spec.shape.dtype).removeprefix("torch.")
        return (
            f"frozen stages run {times}{where}, not {phase.epochs} times: {shape} {kind} an image"
            f"{' and view' if views else ''}, {in_words(spec.num_bytes)} in {str(self.cache.folder)!r}"
            + (f"; {spec.why_not_training}" if spec.why_not_training else "")
        )

    def _features(
        self, spec: FeatureSpec, part: Part, num_views: int, should_stop: Callable[[], bool]
    ) -> StoredFeatures | NoRoom | NotKept | None:
        assert self.cache is not None
        key = self._key(spec.start, part, num_views)
        machine, num_images = self.ranks.on_machine, len(self.batches.parts[part])
        found = find_features(self.cache, key, spec.shape, num_images, num_views)
        if not any(machine.all_reduce_max(found is None)):
            return found
        passes = [self.batches.in_order(part, view) for view in range(num_views)]
        try:
            return compute_features(
                self.cache, key, spec.shape, passes, lambda batch: self._run(batch, spec.start), should_stop, machine
            )
        except OSError as error:
            return NotKept(error.strerror or str(error))

    def _why_not_kept(self, problem: NotKept) -> str:
        assert self.cache is not None
        return (
            f"features cannot be kept in {str(self.cache.folder)!r} ({problem.reason}); make room there, or name "
            "another folder by SAT_VG_CACHE"
        )

    def _key(self, start: int, part: Part, num_views: int) -> str:
        """A hash of all that the features depend on: images, transforms, frozen weights, number formats, versions."""
        sizes = (num_views, self.batches.in_order_size)  # kernels are chosen by the size of a batch, too
        pool = (self.model.row.pool,) if start > len(self.model.stages) else ()
        ways = (*pool, "folded") if self.model.is_folded else pool
        settings = (self.images_key, int(part), sizes, start, self.model.backbone, self.precision.arithmetic, *ways)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=32)
        frozen = [name for stage in self.model.stages[: self.model.num_frozen_stages] for name in stage.members]
        for name, tensor in self.model.network.state_dict().items():
            if any(f"{name}.".startswith(f"{member}.") for member in frozen):
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _example(self) -> Batch:
        preprocessing = self.model.preprocessing
        size = preprocessing.image_size
        images = torch.zeros(2, len(preprocessing.bands), size, size, dtype=torch.uint8)
        return Batch(images, torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))

    @torch.no_grad()
    def _run(self, batch: Batch, start: int) -> Tensor:
        with self.precision.autocast():
            values = image_values(self.model, self.precision, batch.to(self.precision.device))
            value = self.model.run_frozen(values)
            return self.model.pool(value) if start > len(self.model.stages) else value


def _why(no_room: NoRoom) -> str:
    allowed = "--cache_gib allows" if no_room.bound == "limit" else "the disk of the cache has room for"
    return f"features would take {in_words(no_room.needed)}, {allowed} {in_words(no_room.free)}"
