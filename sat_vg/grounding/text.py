"""A pre-trained encoder of phrases from a local folder, in place of own words (extra ``text``)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.grounding.words import PADDING

_SHIFT = 1  # 0 is padding here, and a token of its own there


class PretrainedText(nn.Module):
    """Tokens ``[P, T]`` → vectors ``[P, T, width]`` by a BERT-like encoder (Devlin et al., 2019).

    ``config`` is that of the encoder, as JSON, ``tokenizer`` the content of its tokenizer.json; ConfigError:
    transformers knows no such encoder, or cannot be imported.
    """

    def __init__(self, config: str, tokenizer: str, width: int) -> None:
        super().__init__()
        transformers = _library("transformers")
        self.config, self.tokenizer = config, tokenizer
        try:
            known = transformers.AutoConfig.for_model(**json.loads(config))
            self.encoder = transformers.AutoModel.from_config(known)
            self._tokens = _library("tokenizers").Tokenizer.from_str(tokenizer)
        except Exception as error:  # its errors have no class in common
            raise ConfigError(f"this text encoder cannot be built: {error}") from error
        positions = getattr(getattr(self.encoder, "embeddings", None), "position_embeddings", None)
        self.most_tokens: int | None = None  # of a phrase; None: any number
        if isinstance(positions, nn.Embedding):  # RoBERTa's begin behind that of padding
            first = 0 if positions.padding_idx is None else positions.padding_idx + 1
            self.most_tokens = positions.num_embeddings - first
        self._tokens.no_padding()
        self._tokens.no_truncation()
        self.project = nn.Linear(known.hidden_size, width)

    @classmethod
    def from_folder(cls, folder: Path, width: int) -> PretrainedText:
        """The encoder in a folder with config.json, tokenizer.json and model.safetensors; nothing is downloaded."""
        transformers = _library("transformers")
        try:
            tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
            model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except Exception as error:  # its errors have no class in common
            raise ConfigError(
                f"text_encoder = {str(folder)!r}: has to be a folder with config.json, tokenizer.json and "
                f"model.safetensors of a BERT-like encoder ({error})"
            ) from error
        made = cls(model.config.to_json_string(use_diff=False), tokenizer, width)
        made.encoder.load_state_dict(model.state_dict())
        return made

    def encode(self, words: Sequence[str], max_words: int | None) -> list[int]:
        """Numbers of the first ``max_words`` tokens of a phrase, or of all, the encoder's own marks included."""
        return [number + _SHIFT for number in self._tokens.encode(" ".join(words)).ids[:max_words]]

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors, and a mask ``[P, T]`` that is True where there is no token."""
        is_padding = words == PADDING
        found = self.encoder(input_ids=(words - _SHIFT).clamp(min=0), attention_mask=(~is_padding).long())
        return self.project(found.last_hidden_state), is_padding


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"a text encoder needs {name}, which cannot be imported ({error}); install it with "
            "pip install 'sat_vg[text]'"
        ) from error
