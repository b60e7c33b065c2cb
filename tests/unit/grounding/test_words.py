"""Words of phrases follow the image when it is flipped or turned."""

import pytest

from sat_vg.grounding.words import PADDING, SYMMETRIES, UNKNOWN, Symmetry, Vocabulary, tokens_of, turn_words

MIRROR, HALF, QUARTER = Symmetry(0, True), Symmetry(2, False), Symmetry(1, False)  # a quarter turn counter-clockwise


@pytest.mark.parametrize(
    ("phrase", "symmetry", "expected"),
    [
        ("the ship on the left", MIRROR, "the ship on the right"),
        ("the ship at the top", MIRROR, "the ship at the top"),
        ("the ship at the top", HALF, "the ship at the bottom"),
        ("a court in the upper left corner", MIRROR, "a court in the upper right corner"),
        ("a court in the upper left corner", HALF, "a court in the lower right corner"),
        ("a court in the upper left corner", QUARTER, "a court in the lower left corner"),
        ("the tank on the left", QUARTER, "the tank on the bottom"),
        ("the tank at the top", QUARTER, "the tank at the left"),
        ("the northern runway", MIRROR, "the northern runway"),
        ("the northern runway", QUARTER, "the western runway"),
        ("the northeast bridge", MIRROR, "the northwest bridge"),
        ("the southeastern bridge", QUARTER, "the northeastern bridge"),
        ("the house above the pool", HALF, "the house below the pool"),
        ("the house above the pool", QUARTER, "the house to the left of the pool"),
        ("the house to the right of the pool", QUARTER, "the house above the pool"),
        ("the house to the right of the pool", MIRROR, "the house to the left of the pool"),
        ("the house on the right side of the pool", QUARTER, "the house above the pool"),
        ("the house on the right of the image", QUARTER, "the house on the top of the image"),
        ("a horizontal bridge", QUARTER, "a vertical bridge"),
        ("a horizontal bridge", MIRROR, "a horizontal bridge"),
        ("the red house", QUARTER, "the red house"),
    ],
)
def test_directions_follow_the_image(phrase, symmetry, expected):
    assert turn_words(tokens_of(phrase), symmetry) == tokens_of(expected)


@pytest.mark.parametrize(
    "phrase", ["the ship on the left", "the northwest runway", "a court in the lower right corner"]
)
def test_a_symmetry_and_its_inverse_give_the_phrase_back(phrase):
    for symmetry in SYMMETRIES:
        inverse = symmetry if symmetry.flip else Symmetry(-symmetry.turns % 4)
        assert turn_words(turn_words(tokens_of(phrase), symmetry), inverse) == tokens_of(phrase), symmetry


def test_words_are_lower_case_composed_and_without_punctuation():
    assert tokens_of("The  Café, No.7 (north-west)!") == ["the", "café", "no", "7", "north", "west"]
    assert tokens_of("Cafe\u0301") == tokens_of("CAFÉ")


def test_a_vocabulary_knows_turned_words_and_keeps_others_apart():
    vocabulary = Vocabulary.of(["the ship on the left", "the ship"])
    assert vocabulary.words[:2] == ("the", "ship")
    assert {"right", "top", "bottom"} <= set(vocabulary.words)
    known, unknown = vocabulary.encode(["the", "zeppelin"], 5)
    assert known not in (PADDING, UNKNOWN) and unknown == UNKNOWN
    assert vocabulary.encode(["the"] * 9, 5) == [known] * 5
    assert vocabulary.encode([], 5) == [UNKNOWN]
    assert vocabulary.unknown(["the ship", "the zeppelin"]) == 1
