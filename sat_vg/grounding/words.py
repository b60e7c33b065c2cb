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
_VECTORS = ((0, -1), (0, 1), (-1, 0), (1, 0))
_VERTICAL = {name: (family, place) for family in reversed(_FAMILIES) for place, name in enumerate(family)}
_AXES = {"horizontal": "vertical", "horizontally": "vertically"}
_AXES |= {new: old for old, new in _AXES.items()}
_COMPOUND = re.compile(r"(north|south)(west|east)(ern)?")
_SCENES = {"image", "picture", "photo", "scene", "frame", "map", "tile"}


class Symmetry(NamedTuple):
    """One of the eight flips and quarter turns of a square image.

    Attributes:
        turns: quarter turns counter-clockwise, as ``torch.rot90``.
        flip: whether left and right are swapped after that.
    """

    turns: int = 0
    flip: bool = False

    def vector(self, x: float, y: float) -> tuple[float, float]:
        """Where a direction (x to the right, y down) points afterwards."""
        for _ in range(self.turns % 4):
            x, y = y, -x
        return (-x, y) if self.flip else (x, y)


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
    upright = next((family for family in _FAMILIES[1:2] if set(family[:2]) & set(words)), _FAMILIES[0])
    turned: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("left", "right"):
            beside = _length_of_beside(rest)
            new = _turn(word, _FAMILIES[5] if beside else upright, symmetry)
            if new in ("above", "below"):
                del rest[:beside]
                _drop_preposition(turned)
            turned.append(new)
        elif word in ("above", "below"):
            new = _turn(word, _FAMILIES[5], symmetry)
            turned += [new] if new in ("above", "below") else ["to", "the", new, "of"]
        elif word in _VERTICAL:
            turned.append(_turn(word, _VERTICAL[word][0], symmetry))
        elif compound := _COMPOUND.fullmatch(word):
            pair = [_turn(part, _FAMILIES[3], symmetry) for part in compound.groups()[:2]]
            turned.append("".join(sorted(pair, key=("north", "south", "west", "east").index)) + (compound[3] or ""))
        elif word in _AXES and symmetry.turns % 2:
            turned.append(_AXES[word])
        else:
            turned.append(word)
    return _vertical_first(turned)


def _turn(word: str, family: tuple[str, ...], symmetry: Symmetry) -> str:
    return family[_VECTORS.index(tuple(map(int, symmetry.vector(*_VECTORS[family.index(word)]))))]


def _length_of_beside(rest: Sequence[str]) -> int:
    """How many words after "left" belong to "left of X"; 0 where X is the image itself, or there is none."""
    skipped = 1 if rest[:1] == ["side"] else 0
    if rest[skipped : skipped + 1] != ["of"]:
        return 0
    behind = [word for word in rest[skipped + 1 :] if word not in ("the", "this", "whole", "entire")]
    return 0 if behind[:1] and behind[0] in _SCENES else skipped + 1


def _drop_preposition(words: list[str]) -> None:
    """Drop "to the" and "on the" before "left of": "above" has no preposition."""
    if words[-2:] in (["to", "the"], ["on", "the"], ["at", "the"]):
        del words[-2:]


def _vertical_first(words: list[str]) -> list[str]:
    """Bring "left upper" into the usual order, "upper left"."""
    upright = {"top", "bottom", "upper", "lower", "north", "south"}
    for place in range(len(words) - 1):
        if words[place] in ("left", "right", "west", "east") and words[place + 1] in upright:
            words[place], words[place + 1] = words[place + 1], words[place]
    return words


@dataclass(frozen=True)
class Vocabulary:
    """The words that a model knows; all others are one unknown word.

    Attributes:
        words: in the order of their numbers, which begin behind padding and the unknown word.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, phrases: Iterable[str]) -> "Vocabulary":
        """All words of phrases and of their flipped and turned forms, the most frequent ones first."""
        counts: Counter[str] = Counter()
        for phrase in phrases:
            words = tokens_of(phrase)
            counts.update(words)
            for symmetry in SYMMETRIES[1:]:
                counts.update(dict.fromkeys(turn_words(words, symmetry), 0))
        return cls(tuple(sorted(counts, key=lambda word: (-counts[word], word))))

    def __len__(self) -> int:
        return _NUM_SPECIAL + len(self.words)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, start=_NUM_SPECIAL)}

    def encode(self, words: Sequence[str], max_words: int) -> list[int]:
        """Numbers of the first ``max_words`` words; at least one, so that a phrase is never empty."""
        return [self._numbers.get(word, UNKNOWN) for word in words[:max_words]] or [UNKNOWN]

    def unknown(self, phrases: Iterable[str]) -> int:
        """How many of the phrases have a word that is not known."""
        return sum(any(word not in self._numbers for word in tokens_of(phrase)) for phrase in phrases)
