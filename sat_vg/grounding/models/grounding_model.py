"""GroundingModel: an image and a phrase → the box of what the phrase names; with its file."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import sat_vg
from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError, DataError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Preprocessing
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors
from sat_vg.grounding.data.batches import pad_words
from sat_vg.grounding.data.images import letterbox
from sat_vg.grounding.data.records import Box
from sat_vg.grounding.data.words import Vocabulary, tokens_of
from sat_vg.grounding.models.network import GroundingNetwork, Sizes

FORMAT, SCHEMA = "sat_vg.grounding_model", 1
_PARTS = {"backbone": str, "preprocessing": dict, "vocabulary": list, "sizes": dict, "state_dict": dict}
ImageInput = str | Path | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Prediction:
    """Where a phrase is in an image.

    Attributes:
        box: corners ``(x1, y1, x2, y2)`` in pixels of the image.
        score: probability that the network gives to the box's place, 0 to 1.
    """

    box: Box
    score: float


class GroundingModel(nn.Module):
    """An image and a phrase → a box.

    Args:
        source: a model whose backbone, weights and preprocessing are used.
        vocabulary: the words that it knows.
        sizes: sizes of the network.
        freeze_backbone: keep the backbone as it is.
        freeze_norm: keep batch norms of the backbone as they are.

    Attributes:
        network: the network with its backbone.
        metrics: of these weights on the validation phrases, plain numbers.
        config: of the run that trained it, plain data.
    """

    def __init__(
        self,
        source: FineTuneModel,
        vocabulary: Vocabulary,
        sizes: Sizes,
        freeze_backbone: bool = False,
        freeze_norm: bool = True,
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
        extractor = source.get_feature_extractor(
            trainable_stages=() if freeze_backbone else None, freeze_norm=self.freeze_norm
        )
        self.network = GroundingNetwork(extractor, len(vocabulary), sizes)
        self.metrics: dict[str, float] = {}
        self.config: dict[str, Any] = {}

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
            raise DataError(f"the phrase {phrases[0] if phrases else ''!r} has no words; write what to look for")
        canvas, box = letterbox(_pixels_of(image), self.sizes.image_size)
        device = next(self.parameters()).device
        encoded = [self.vocabulary.encode(few, self.sizes.max_words) for few in words]
        was_training = self.training
        self.eval()
        scores, boxes = self(
            canvas[None].to(device),
            box.mask[None].to(device),
            torch.zeros(len(phrases), dtype=torch.int64, device=device),
            pad_words(encoded).to(device),
        )
        self.train(was_training)
        chosen, found = best_boxes(scores, boxes)
        pixels = box.to_image(found.cpu()).tolist()
        predictions = [Prediction(tuple(one), float(score)) for one, score in zip(pixels, chosen.cpu(), strict=True)]
        return predictions[0] if isinstance(phrase, str) else predictions

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the model as one self-contained file, atomically.

        Raises:
            WriteError: it cannot be written.
        """
        content = {
            "format": FORMAT,
            "schema": SCHEMA,
            "backbone": self.backbone,
            "preprocessing": self.preprocessing.to_dict(),
            "vocabulary": list(self.vocabulary.words),
            "sizes": asdict(self.sizes),
            "freeze_norm": self.freeze_norm,
            "state_dict": {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()},
            "metrics": self.metrics,
            "config": self.config,
            "versions": {
                "sat_vg": sat_vg.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        }
        save_tensors(Path(path), content)

    @classmethod
    def load_checkpoint(cls, path: str | Path) -> GroundingModel:
        """A model from a file of ``save_checkpoint``, on the CPU and in eval mode.

        Raises:
            CheckpointError: the file is missing, altered, or of another kind.
        """
        content = load_tensors(Path(path))
        _require_model(content, Path(path))
        preprocessing = Preprocessing.from_dict(content["preprocessing"])
        try:
            sizes = Sizes(**content["sizes"])
            source = FineTuneModel(
                content["backbone"], 2, pretrained=False, weights="none", image_size=preprocessing.image_size
            )
            source.preprocessing = preprocessing
            vocabulary = Vocabulary(tuple(map(str, content["vocabulary"])))
            model = cls(source, vocabulary, sizes, freeze_norm=bool(content.get("freeze_norm", True)))
            model.network.load_state_dict(content["state_dict"])
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{str(path)!r} holds a model that cannot be built: {reason}; use another file"
            ) from error
        model.metrics, model.config = dict(content.get("metrics", {})), dict(content.get("config", {}))
        return model.eval()


def best_boxes(scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The probability ``[P]`` of the best place of each phrase, and its corners ``[P, 4]``."""
    probabilities, places = scores.softmax(-1).max(-1)
    return probabilities, boxes[torch.arange(len(boxes), device=boxes.device), places]


def _pixels_of(image: ImageInput) -> Tensor:
    """An image as uint8 ``[3, H, W]``."""
    if isinstance(image, (str, Path)):
        return decode_rgb(image)
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    if isinstance(image, np.ndarray):
        pixels = torch.from_numpy(np.array(image))  # a copy: the array may be read-only
        pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    else:
        pixels = image
    if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        found = f"{getattr(image, 'dtype', '?')} {tuple(getattr(image, 'shape', ()))}"
        raise DataError(
            f"the image is a {type(image).__name__} of {found}; "
            "it may be a path, a PIL image, an array uint8 [H, W, 3] or a tensor uint8 [3, H, W]"
        )
    return pixels


def _require_model(content: Any, path: Path) -> None:
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        of_finetuning = isinstance(content, Mapping) and content.get("format") == "sat_vg.best_model"
        hint = "it is a backbone of the fine-tuning: train with --backbone" if of_finetuning else "check the path"
        raise CheckpointError(f"{str(path)!r} is no grounding model; {hint}")
    if content.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{str(path)!r} has schema {content.get('schema')!r}; this version of sat_vg reads {SCHEMA}"
        )
    wrong = [name for name, kind in _PARTS.items() if not isinstance(content.get(name), kind)]
    if wrong:
        raise CheckpointError(f"{str(path)!r} has no sound part {wrong[0]!r}: the file is altered; use another one")
