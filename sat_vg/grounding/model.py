"""GroundingModel: an image and a phrase → the box of what the phrase names; with its file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.models.artifact import current_versions, on_cpu
from sat_vg.backbone_finetuning.models.prediction import pixels_of
from sat_vg.backbone_finetuning.training.checkpoint_checks import wrong_tensors
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError, DataError, UserError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Preprocessing, ToPixels
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors
from sat_vg.grounding.batches import pad_words
from sat_vg.grounding.config import GroundingConfig
from sat_vg.grounding.images import letterbox, read_image, require_every_pixel
from sat_vg.grounding.network import GroundingNetwork, Sizes, best_boxes
from sat_vg.grounding.readers import Box
from sat_vg.grounding.text import PretrainedText
from sat_vg.grounding.words import Vocabulary, tokens_of

FORMAT, SCHEMA = "sat_vg.grounding_model", 1
_PARTS = {
    "backbone": str, "preprocessing": dict, "vocabulary": list, "sizes": dict, "freeze_norm": bool,
    "state_dict": dict, "metrics": dict, "config": dict, "baselines": dict,
}  # fmt: skip
ImageInput = str | Path | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Prediction:
    """Where a phrase is in an image."""

    box: Box  # corners (x1, y1, x2, y2) in pixels of the image
    score: float  # probability that the network gives to the box's place, 0 to 1


class GroundingModel(nn.Module):
    """An image and a phrase → a box, by the backbone, weights and preprocessing of another model, ``source``.

    ``freeze_norm`` keeps batch norms of a backbone that is trained as they are; ``text`` is a pre-trained encoder of
    phrases in place of own words.
    """

    def __init__(
        self,
        source: FineTuneModel,
        vocabulary: Vocabulary,
        sizes: Sizes,
        freeze_backbone: bool = False,
        freeze_norm: bool = True,
        text: PretrainedText | None = None,
    ) -> None:
        super().__init__()
        if source.preprocessing.files is not None or source.preprocessing.bands != RGB:
            raise ConfigError(
                f"the backbone takes the bands {', '.join(source.preprocessing.bands)} of GeoTIFFs; grounding reads "
                "8-bit RGB images, so it needs a backbone that was trained on those"
            )
        self.backbone, self.preprocessing = source.backbone, source.preprocessing
        self.vocabulary, self.sizes = vocabulary, sizes
        self.freeze_norm = freeze_norm or freeze_backbone
        trained = () if freeze_backbone else None
        extractor = source.get_feature_extractor(trainable_stages=trained, freeze_norm=self.freeze_norm)
        self.network = GroundingNetwork(extractor, len(vocabulary), sizes, text)
        self.max_words = min(sizes.max_words, text.most_tokens or sizes.max_words) if text else sizes.max_words
        self.encode = partial((text or vocabulary).encode, max_words=self.max_words)  # words → numbers
        self.metrics: dict[str, float] = {}  # of these weights on the validation phrases
        self.config: dict[str, Any] = {}  # of the run that trained it; empty where there was none
        self.baselines: dict[str, Tensor] = {}  # boxes without the image, see metrics.fit_baselines

    def forward(self, images: Tensor, masks: Tensor, image_of: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[P, N]`` and corners ``[P, N, 4]`` of uint8 images ``[I, 3, S, S]``; see ``GroundingNetwork``."""
        found: tuple[Tensor, Tensor] = self.network(self.preprocessing.normalise(images), masks, image_of, words)
        return found

    @torch.no_grad()
    def predict(self, image: ImageInput, phrase: str | Sequence[str]) -> Prediction | list[Prediction]:
        """Where one phrase, or each of several, is in an image.

        Args:
            image: a path, a PIL image, an array uint8 ``[H, W, 3]`` or a tensor uint8 ``[3, H, W]``.
            phrase: a text, or several.

        Raises:
            UserError: the image cannot be read, or a phrase has no words.
        """
        phrases = [phrase] if isinstance(phrase, str) else list(phrase)
        words = [tokens_of(one) for one in phrases]
        if not words or not all(words):
            lacking = next((one for one, few in zip(phrases, words, strict=True) if not few), "")
            raise DataError(f"the phrase {lacking!r} has no words; write what to look for")
        canvas, box = letterbox(self._pixels_of(image), self.sizes.image_size)
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        scores, boxes = self(
            canvas[None].to(device),
            box.mask[None].to(device),
            torch.zeros(len(phrases), dtype=torch.int64, device=device),
            pad_words(map(self.encode, words)).to(device),
        )
        self.train(was_training)
        chosen, found = best_boxes(scores, boxes)
        pixels = box.to_image(found.cpu()).tolist()
        predictions = [Prediction(tuple(one), float(score)) for one, score in zip(pixels, chosen.cpu(), strict=True)]
        return predictions[0] if isinstance(phrase, str) else predictions

    def read(self, path: str | Path) -> Tensor:
        """An image file as the backbone's training read it, uint8 ``[3, H, W]``; raises DataError."""
        return read_image(path, decoder_of(self.preprocessing)).pixels

    def _pixels_of(self, image: ImageInput) -> Tensor:
        """An image as uint8 ``[3, H, W]``; a PIL image is read as its file would be."""
        if isinstance(image, (str, Path)):
            return self.read(image)
        if isinstance(image, Image.Image):
            require_every_pixel(*image.size, "in memory")
        pixels: Tensor = ToPixels(self.preprocessing)(pixels_of(image) if isinstance(image, np.ndarray) else image)
        if pixels.ndim != 3 or not pixels.numel():
            raise DataError(f"the image is a tensor of shape {list(pixels.shape)}: give one image, [3, H, W]")
        return pixels

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the model as one self-contained file, atomically.

        Raises:
            WriteError: it cannot be written.
        """
        text = self.network.text
        content = {
            "format": FORMAT,
            "schema": SCHEMA,
            "backbone": self.backbone,
            "preprocessing": self.preprocessing.to_dict(),
            "vocabulary": list(self.vocabulary.words),
            "sizes": asdict(self.sizes),
            "freeze_norm": self.freeze_norm,
            "state_dict": on_cpu(self.network.state_dict()),
            "metrics": self.metrics,
            "config": self.config,
            "baselines": self.baselines,
            "text": {"config": text.config, "tokenizer": text.tokenizer} if isinstance(text, PretrainedText) else {},
            "versions": current_versions(),
        }
        save_tensors(Path(path), content)

    @classmethod
    def load_checkpoint(cls, path: str | Path) -> GroundingModel:
        """A model from a file of ``save_checkpoint``, on the CPU and in eval mode.

        Raises:
            CheckpointError: the file is missing, altered, or of another kind.
        """
        content = load_tensors(Path(path))
        kind = content.get("format") if isinstance(content, Mapping) else None
        if kind != FORMAT:
            of_finetuning = kind == "sat_vg.best_model"
            hint = "it is a backbone of the fine-tuning: train with --backbone" if of_finetuning else "check the path"
            raise CheckpointError(f"{str(path)!r} is no grounding model; {hint}")
        if type(content.get("schema")) is not int or content["schema"] != SCHEMA:
            raise CheckpointError(
                f"{str(path)!r} has schema {content.get('schema')!r}; this version of sat_vg reads {SCHEMA}"
            )
        try:
            _require_sound(_faults(content))
            preprocessing = Preprocessing.from_dict(content["preprocessing"])
            source = FineTuneModel(
                content["backbone"], 2, pretrained=False, weights="none", image_size=preprocessing.image_size
            )
            source.preprocessing = preprocessing
            with torch.device("meta"):  # what is larger than the file shall take no memory
                empty = cls._of(content, source)
            _require_sound(_wrong_tensors(content, empty))
            model = cls._of(content, source)
        except UserError as error:
            raise CheckpointError(f"{str(path)!r} cannot be used: {error}") from error
        model.network.load_state_dict(content["state_dict"])
        model.metrics, model.config, model.baselines = content["metrics"], content["config"], content["baselines"]
        return model.eval()

    @classmethod
    def _of(cls, content: Mapping[str, Any], source: FineTuneModel) -> GroundingModel:
        """The model of a file's content, without its weights."""
        sizes, stored = Sizes(**content["sizes"]), content.get("text")  # files of earlier versions have no text
        text = PretrainedText(stored["config"], stored["tokenizer"], sizes.width) if stored else None
        vocabulary = Vocabulary(tuple(content["vocabulary"]))
        try:
            return cls(source, vocabulary, sizes, freeze_norm=content["freeze_norm"], text=text)
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(f"its sizes are those of no network ({error})") from error


def _require_sound(faults: Iterator[str]) -> None:
    for fault in faults:
        raise CheckpointError(f"it is altered: {fault}; use another file")


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a file, but for its tensors; what comes later relies on what comes before it."""
    lacking = [name for name, kind in _PARTS.items() if not isinstance(content.get(name), kind)]
    if lacking:
        yield f"it lacks a sound {', '.join(lacking)}"
    words = content["vocabulary"]
    if not all(isinstance(word, str) for word in words) or len(set(words)) < len(words):
        yield "its vocabulary holds more than words, or one of them twice"
    if not all(isinstance(name, str) and type(one) in (int, float) for name, one in content["metrics"].items()):
        yield "its metrics are no numbers"
    sizes, text, num_weights = content["sizes"], content.get("text") or {}, len(content["state_dict"])
    if text and not (isinstance(text, dict) and {"config", "tokenizer"} <= set(text)):
        yield "its text encoder lacks a part"
    try:  # the ranges of the settings
        GroundingConfig(**asdict(Sizes(**sizes)))
        GroundingConfig(**content["config"])
        text_layers = json.loads(text["config"]).get("num_hidden_layers", 0) if text else 0
        num_layers = max(sizes["text_layers"] + sizes["fusion_layers"], text_layers)
    except (ConfigError, TypeError, ValueError, KeyError, AttributeError) as error:
        yield f"it holds settings that no run can have: {error}"
    if num_layers > num_weights:
        yield f"it has {num_layers} layers and {num_weights} weights"


def _wrong_tensors(content: Mapping[str, Any], model: GroundingModel) -> Iterator[str]:
    yield from wrong_tensors("the network", content["state_dict"], model.network.state_dict())
    baseline = torch.empty(len(model.vocabulary.words) + 1, 4, dtype=torch.float64)
    yield from wrong_tensors("the baselines", content["baselines"], dict.fromkeys(content["baselines"], baseline))
