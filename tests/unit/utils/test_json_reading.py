"""JSON of strangers and of killed processes: read as it is, or one sentence."""

import json

import pytest

from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, parse_json, read_json

SOUND = [
    None,
    True,
    0,
    -1.5,
    2**63 - 1,
    -(2**63),
    1e308,
    "ünï 卫星 \x00",
    [],
    {},
    {"a": [1, {"b": None}], "": "x"},
    [[[1] * 999] * 99],
]
UNSOUND = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "two values": b"1 2",
    "text": b"<html>",
    "NaN": b'{"loss": NaN}',
    "Infinity": b"[Infinity]",
    "minus infinity": b"[-Infinity]",
    "a float that overflows": b'{"done": 1e999}',
    "an integer beyond 64 bits": b'{"done": 18446744073709551616}',
    "a negative one": b"-9223372036854775809",
    "very many digits": b"9" * 9999,
    "a name twice": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "lists in lists": b"[" * 65 + b"]" * 65,
    "deeper than Python's stack": b"[" * 200_000 + b"]" * 200_000,
    "objects in objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep and unfinished": b"[" * 200_000,
}


@pytest.mark.parametrize("value", SOUND, ids=lambda value: repr(value)[:20])
def test_what_is_sound_is_read_as_it_is(tmp_path, value):
    (tmp_path / "f.json").write_text(json.dumps(value), encoding="utf-8")
    assert read_json(tmp_path / "f.json") == parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("what", UNSOUND)
def test_what_is_not_is_a_sentence(tmp_path, what):
    (tmp_path / "f.json").write_bytes(UNSOUND[what])
    with pytest.raises(UnsoundJSONError) as caught:
        read_json(tmp_path / "f.json")
    assert str(caught.value).startswith("it")
    assert len(str(caught.value)) < 200


def test_as_many_levels_as_are_allowed():
    assert parse_json(b"[" * 64 + b"]" * 64)
    with pytest.raises(UnsoundJSONError, match="nested more than 64 deep"):
        parse_json(b"[" * 65 + b"]" * 65)


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    with (tmp_path / "f.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="longer than 1000 bytes"):
        read_json(tmp_path / "f.json", 1000)
