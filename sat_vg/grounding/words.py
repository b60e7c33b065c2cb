"""Words of phrases: tokens, vocabulary, and how directions change when the image is flipped or turned."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

PADDING, UNKNOWN = 0, 1
_NUM_SPECIAL = 2
_TOKEN = re.compile(r"[^\W_]+")

# Words for up, down, left and right that go together.
_FAMILIES = (
    ("top", "bottom", "left", "right"),
    ("upper", "lower", "left", "right"),
    ("topmost", "bottommost", "leftmost", "rightmost"),
    ("north", "south", "west", "east"),
    ("northern", "southern", "western", "eastern"),
    ("above", "below", "left", "right"),
    ("up", "down", "left", "right"),
)
_OF_IMAGE, _OF_PART, _COMPASS, _BESIDE = (_FAMILIES[place] for place in (0, 1, 3, 5))
_FAMILY_OF = {word: family for family in reversed(_FAMILIES) for word in family}
_VECTORS = ((0, -1), (0, 1), (-1, 0), (1, 0))
_AXES = {"horizontal": "vertical", "horizontally": "vertically"}
_AXES |= {new: old for old, new in _AXES.items()}
# "to the left of X", unless X is the image itself; compounds such as "northeast"; all other words that turn.
_TURNING = re.compile(
    r"\b(?:(?:(?:to|on|at) the )?(?P<beside>left|right)(?: side)? of"
    r"(?! (?:(?:the|this|whole|entire) )*(?:image|picture|photo|scene|frame|map|tile)\b)"
    rf"|(?P<compound>(north|south)(west|east)(ern)?)|{'|'.join((*_FAMILY_OF, *_AXES))})\b"
)
_SIDE_FIRST = re.compile(
    r"\b(left|right|west|east) ((?:top|bottom|upper|lower|north|south)(?: (?:top|bottom|upper|lower|north|south))*)\b"
)


class Symmetry(NamedTuple):
    """One of the eight flips and quarter turns of a square image."""

    turns: int = 0  # quarter turns counter-clockwise, as torch.rot90
    flip: bool = False  # whether left and right are swapped after that

    def turn(self, word: str, family: Sequence[str]) -> str:
        """Where a word of a family of directions points afterwards."""
        x, y = _VECTORS[family.index(word)]
        for _ in range(self.turns):
            x, y = y, -x
        return family[_VECTORS.index((-x if self.flip else x, y))]


IDENTITY = Symmetry()
SYMMETRIES = tuple(Symmetry(turns, flip) for flip in (False, True) for turns in range(4))


def tokens_of(phrase: str) -> list[str]:
    """The words of a phrase: lower case, compatibility forms of Unicode composed, punctuation left out."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", phrase).casefold())


def turn_words(words: Sequence[str], symmetry: Symmetry) -> list[str]:
    """Words that describe the flipped or turned image as ``words`` describe the image.

    Left and right, top and bottom, compass directions and their compounds change places. Where a quarter turn makes
    "above" of "to the left of", or the other way round, the words around it change too.
    """
    if symmetry == IDENTITY:
        return list(words)
    upright = _OF_PART if {"upper", "lower"} & set(words) else _OF_IMAGE

    def turn(match: re.Match[str]) -> str:
        word = match[0]
        if side := match["beside"]:
            new = symmetry.turn(side, _BESIDE)
            return new if new in ("above", "below") else word.replace(side, new)
        if match["compound"]:
            pair = [symmetry.turn(part, _COMPASS) for part in match.group(3, 4)]
            return "".join(sorted(pair, key=_COMPASS.index)) + (match[5] or "")
        if word in _AXES:
            return _AXES[word] if symmetry.turns % 2 else word
        new = symmetry.turn(word, upright if word in ("left", "right") else _FAMILY_OF[word])
        return f"to the {new} of" if word in ("above", "below") and new in ("left", "right") else new

    turned = _TURNING.sub(turn, " ".join(words))
    return _SIDE_FIRST.sub(r"\2 \1", turned).split()  # "left upper" is said the other way round


@dataclass(frozen=True)
class Vocabulary:
    """The words that a model knows; all others are one unknown word."""

    words: tuple[str, ...]  # in the order of their numbers, which begin behind padding and the unknown word

    @classmethod
    def of(cls, phrases: Iterable[str]) -> "Vocabulary":
        """All words of phrases and of their flipped and turned forms, the most frequent ones first."""
        counts: Counter[str] = Counter()
        for words in map(tokens_of, phrases):
            counts.update(words)
            for symmetry in SYMMETRIES[1:]:
                counts.update(dict.fromkeys(turn_words(words, symmetry), 0))
        return cls(tuple(sorted(counts, key=lambda word: (-counts[word], word))))

    def __len__(self) -> int:
        return _NUM_SPECIAL + len(self.words)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, start=_NUM_SPECIAL)}

    def encode(self, words: Sequence[str], max_words: int | None) -> list[int]:
        """Numbers of the first ``max_words`` words, or of all; at least one, so that a phrase is never empty."""
        return [self._numbers.get(word, UNKNOWN) for word in words[:max_words]] or [UNKNOWN]

    def unknown(self, phrases: Iterable[str]) -> int:
        """How many of the phrases have a word that is not known."""
        return sum(any(word not in self._numbers for word in tokens_of(phrase)) for phrase in phrases)
