"""FineTuneModel: a classifier with its starting weights, its files, its explanations and its feature extractor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from sat_vg.backbone_finetuning.configs.choices import Pool
from sat_vg.backbone_finetuning.models.artifact import (
    artifact_of,
    model_of,
    read_artifact,
    safetensors_metadata_of,
    write_artifact,
)
from sat_vg.backbone_finetuning.models.attention import attention_on_grid, set_attention_dropout
from sat_vg.backbone_finetuning.models.explain import grad_cam
from sat_vg.backbone_finetuning.models.explain import save_explanation as write_explanation
from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.freezing import choose_trainable
from sat_vg.backbone_finetuning.models.image_batches import require_normalised
from sat_vg.backbone_finetuning.models.input_bands import choose_bands, take_bands
from sat_vg.backbone_finetuning.models.networks.table import build_network, find_backbone, usual_size, with_pool
from sat_vg.backbone_finetuning.models.probabilities import PROBABILITIES, TaskName
from sat_vg.backbone_finetuning.models.staged_classifier import StagedClassifier
from sat_vg.backbone_finetuning.models.weights import StartRequest, load_initial_weights
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.tensor_files import save_safetensors

if TYPE_CHECKING:
    from sat_vg.backbone_finetuning.models.prediction import Prediction


class FineTuneModel(StagedClassifier):
    """A backbone to fine-tune: ``images [B, C, H, W], normalised → logits [B, num_classes]``.

    ``network`` is torchvision's own module with torchvision's own parameter names, so its state dict loads into
    ``torchvision.models`` and the other way round. It is run stage by stage; frozen stages before the first
    trained one run without gradients. Further attributes are those of ``StagedClassifier``.

    Args:
        backbone: a name that ``sat-vg backbones`` lists, such as ``resnet50``.
        num_classes: outputs of the new classifier.
        pretrained: start from the best published weights; ``weights`` decides where it is given.
        freeze_early_layers: freeze all stages but ``unfreeze_layers``.
        unfreeze_layers: names of the stages to train then; unset: the deeper half.
        dropout: probability of dropping a pooled feature before the classifier.
        weights: torchvision name, path of a file with weights, or ``none``. A best_model.pt with the same
            ``class_names`` gives its classifier, too.
        image_size: height and width of the training images, in pixels; unset: the size of the published weights.
        class_names: in the order of the outputs; unset: ``"0" … ``.
        seed: of the random start.
        freeze_layers: freeze so many stages from the input on; not together with ``freeze_early_layers``.
        in_channels: channels of the images; unset: as many as ``bands``, or 3.
        bands: what the channels are, in order, such as ``("red", "green", "blue", "nir")``; needed where they are
            not red, green, blue. RGB weights are inflated for them (see ``input_bands.inflate_rgb``).
        task: ``single_label``: an image has one class; ``multi_label``: any number of them.
        attention_dropout: probability of dropping a weight of attention in training; for ViT and Swin.
        pool: what the classifier sees: ``default``, or ``avg``, a ViT's averaged patch tokens instead of its class
            token (Zhai et al., 2022).
        allow_missing: the file in ``weights`` may lack a part of the backbone, which then starts at random.

    Attributes:
        preprocessing: steps that images go through before the model.
        weights_report: report of the loaded weights, in one line.
        trained_with: configuration of the training that the best_model.pt in ``weights`` comes from; else empty.
        needs_head: weights were loaded for the backbone, and the head starts at random.
        provenance: origin of the weights, plain data; handed on to the extractor.

    Raises:
        ConfigError: unknown backbone or stage, or an image size or dropout that the backbone cannot take.
        WeightsError: the weights cannot be had or do not fit.
    """

    def __init__(  # noqa: PLR0913 - the constructor that users know
        self,
        backbone: str = "resnet50",
        num_classes: int = 1000,
        pretrained: bool = True,
        freeze_early_layers: bool = False,
        unfreeze_layers: Sequence[str] | None = None,
        dropout: float = 0.0,
        *,
        weights: str | None = None,
        image_size: int | None = None,
        class_names: Sequence[str] | None = None,
        seed: int = 0,
        freeze_layers: int = 0,
        in_channels: int | None = None,
        bands: Sequence[str] | None = None,
        task: TaskName = "single_label",
        attention_dropout: float = 0.0,
        pool: Pool = "default",
        allow_missing: bool = False,
    ) -> None:
        if class_names is not None and len(class_names) != num_classes:
            raise ConfigError(f"num_classes = {num_classes}, but class_names holds {len(class_names)} names")
        if class_names is not None and len(set(class_names)) < len(class_names):
            raise ConfigError(f"class_names = {list(class_names)[:20]}: a name is there more than once")
        if task not in PROBABILITIES:
            raise ConfigError(f"task = {task!r}: must be {' or '.join(PROBABILITIES)}")
        if num_classes < 1:
            raise ConfigError(f"num_classes = {num_classes}: must be 1 or more, an output for each class")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout = {dropout}: must be from 0 up to but not including 1; for example 0.2")
        row = find_backbone(backbone)
        image_size = usual_size(row, weights) if image_size is None else image_size
        network = build_network(row, num_classes, image_size, seed)
        row = with_pool(row, network, pool)
        if not 0 <= attention_dropout < 1:
            raise ConfigError(f"attention_dropout = {attention_dropout}: must be from 0 up to but not including 1")
        if attention_dropout and not set_attention_dropout(network, attention_dropout):
            raise ConfigError(
                f"attention_dropout = {attention_dropout}: {row.name} has no attention that drops weights; leave it "
                "out, or take a backbone such as vit_b_16 or swin_t"
            )
        bands = choose_bands(in_channels, bands)
        take_bands(network, row.family.stages(network), bands)
        request = StartRequest(
            weights=weights,
            pretrained=pretrained,
            image_size=image_size,
            bands=bands,
            class_names=None if class_names is None else tuple(class_names),
            task=task,
            allow_missing=allow_missing,
        )
        loaded = load_initial_weights(network, row, request)
        names = tuple(class_names or (str(index) for index in range(num_classes)))
        super().__init__(row, network, loaded.preprocessing, names, dropout, task)
        self.weights_report, self.needs_head = loaded.report, loaded.needs_head
        self.trained_with = loaded.trained_with or {}
        self.provenance: dict[str, Any] = {"weights": self.weights_report}
        self.set_trainable(choose_trainable(self.stages, freeze_early_layers, unfreeze_layers, freeze_layers))

    def predict(self, images: Any, batch_size: int = 16) -> list[Prediction]:
        """Classes and probabilities of images, which are resized and normalised as in the training.

        Args:
            images: a path of a file, folder, glob or .csv table; a PIL image; a uint8 array ``[H, W, C]``; a tensor
                ``[C, H, W]`` or ``[B, C, H, W]`` as ``preprocessing.normalise`` takes it; or a list of any of these.
            batch_size: images that go through the model at once.

        Returns:
            One ``Prediction`` for each image, in order.

        Raises:
            ConfigError: files are named, and the model takes bands that it cannot find in files.
            DataError: a file cannot be read, or a folder holds no images.
            UserError: an image is of a type or shape that the model cannot take.
        """
        # Imported only now: it reads files, which an extractor does not.
        from sat_vg.backbone_finetuning.models.prediction import predict

        return predict(self, images, batch_size)

    def get_attention_maps(self, images: Tensor, layer_idx: int = -1) -> Tensor:
        """Attention of one block of a ViT (Dosovitskiy et al., 2021), torchvision's or timm's.

        Args:
            images: ``[B, C, H, W]``, normalised.
            layer_idx: block, from 0 over the whole network; negative from the end.

        Returns:
            ``[B, heads, tokens, tokens]``: row i holds how much token i takes from each token and sums to 1. Token 0
            is the class token; some of timm's networks have none, or more tokens before the patches.

        Raises:
            ConfigError: the backbone is no ViT, or has no such block, the images are no normalised batch, or the
                result would be larger than 2 GiB.
        """
        require_normalised(images, self.in_channels, self.network)
        return attention_on_grid(self.network, self.row, self.stages, images, layer_idx).weights

    def explain(self, images: Tensor, classes: Tensor | int | str | None = None, stage: str | None = None) -> Tensor:
        """Where in the images a class was seen, by Grad-CAM (Selvaraju et al., 2017); see ``explain.grad_cam``.

        Args:
            images: ``[B, C, H, W]``, normalised.
            classes: index or name of the class for all images, or indices ``[B]``; unset: what is predicted.
            stage: stage of the map; unset: the deepest one whose map the logit depends on.

        Returns:
            Heat ``[B, H, W]``, float32, 0 to 1; zeros where nothing speaks for the class.

        Raises:
            ConfigError: there is no such class or stage, the stage gives no map, or the images are no batch.
        """
        return grad_cam(self, images, classes, stage)

    def save_explanation(
        self,
        images: Tensor,
        path: str | Path,
        *,
        kind: Literal["grad_cam", "attention"] = "grad_cam",
        classes: Tensor | int | str | None = None,
        stage: str | None = None,
        layer_idx: int | None = None,
    ) -> None:
        """Draw images beside what the model looked at in them, as a PNG.

        Over each image stand the predicted class with its probability and the explained class. The bands named red,
        green and blue are drawn; where these are not all there, the first three channels, or a single one in grey.

        Args:
            images: ``[B, C, H, W]``: uint8, or normalised floats.
            path: of the PNG; it appears whole or not at all.
            kind: ``grad_cam``, for every backbone; ``attention``, for ViT.
            classes: for Grad-CAM: as in ``explain``.
            stage: for Grad-CAM: as in ``explain``.
            layer_idx: for attention: the block; unset: the last.

        Raises:
            ConfigError: an argument that cannot be used, or that this kind has no use for.
            WriteError: the file cannot be written.
        """
        write_explanation(self, images, path, kind=kind, classes=classes, stage=stage, layer_idx=layer_idx)

    def get_feature_extractor(
        self,
        out_names: Sequence[str | int] | None = None,
        trainable_stages: Sequence[str] | None = None,
        freeze_norm: bool = True,
        dilation: bool = False,
    ) -> FeatureExtractor:
        """A copy of the backbone without its classifier, for a grounding or detection model.

        Args:
            out_names: stages whose maps are wanted, by name, or by position among the stages that give maps
                (negative: from the end); unset: the last one of every stride from 4 on.
            trainable_stages: stages that the consumer trains; unset: all up to the last map.
            freeze_norm: batch norm keeps its statistics, scale and shift, also after calls of ``train()``.
            dilation: the last maps at half their stride, by dilated convolutions with the same weights, as in DETR's
                DC5 and TransVG; see ``dilation.dilate``.

        Raises:
            ConfigError: a name is no stage of this backbone, or its last stage cannot be dilated.
        """
        return FeatureExtractor(
            copy.deepcopy(self.network),
            self.row,
            preprocessing=self.preprocessing,
            class_names=self.class_names,
            out_names=out_names,
            trainable_stages=trainable_stages,
            freeze_norm=freeze_norm,
            dilation=dilation,
            provenance=self.provenance,
        )

    def save_checkpoint(
        self,
        path: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Write best_model.pt: weights, backbone, class names, task, preprocessing, config, metrics, versions.

        Args:
            path: of the file; it appears whole or not at all.
            config: the run's configuration as plain data.
            metrics: validation metrics of these weights.

        Raises:
            WriteError: the folder cannot be written to or the disk is full.
        """
        write_artifact(Path(path), artifact_of(self, config or {}, metrics or {}))

    def save_safetensors(self, path: str | Path) -> None:
        """Write the weights alone in the format of safetensors, under torchvision's names.

        Backbone, class names and preprocessing lie in the file's metadata, as JSON. ``--weights PATH`` starts another
        run from it; the name must end in ``.safetensors``.

        Raises:
            ConfigError: the name ends otherwise.
            WriteError: the folder cannot be written to or the disk is full.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ConfigError(f"path = {str(path)!r}: must end in .safetensors, by which it is known when it is read")
        save_safetensors(path, self.network.state_dict(), safetensors_metadata_of(self))

    @classmethod
    def load_checkpoint(cls, path: str | Path) -> FineTuneModel:
        """The model of a best_model.pt, on the CPU, in eval mode.

        Raises:
            CheckpointError: the file is missing, damaged, no artifact, or of a newer schema.
        """
        artifact = read_artifact(Path(path))
        build = partial(
            cls,
            artifact.backbone,
            len(artifact.class_names),
            pretrained=False,
            dropout=artifact.dropout,
            image_size=artifact.preprocessing.image_size,
            class_names=artifact.class_names,
            bands=artifact.preprocessing.bands,
            task=artifact.task,
            pool=artifact.pool,
        )
        model = model_of(artifact, build, path)
        model.weights_report = f"weights: {path}"
        model.provenance = {
            "checkpoint": str(path),
            "metrics": artifact.metrics,
            "config": artifact.config,
            "versions": artifact.versions,
        }
        return model.eval()
