"""What ``--search`` means, and what is refused before anything is trained."""

import json

import pytest

from sat_vg.backbone_finetuning.commands.tune.cli import TuneOptions
from sat_vg.backbone_finetuning.commands.tune.search import Choice, Interval, Search, parse_search
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.utils.errors import ConfigError


def read(*texts: str, flags: tuple[str, ...] = (), **options):
    from sat_vg.backbone_finetuning.commands.tune.run import read_search

    return read_search(TuneOptions(search=texts, **{"data": "images", **options}), flags)


def test_values_and_ranges():
    rate, decay, size, strategy, layers = parse_search(
        ["learning_rate=1e-5..1e-2:log", "weight_decay=0..0.1", "batch_size=8..64:log", "strategy=full, lp_ft",
         "unfreeze_layers=layer4|layer3,layer4"]
    )  # fmt: skip
    assert rate == Interval("learning_rate", 1e-5, 1e-2, True)
    assert decay == Interval("weight_decay", 0.0, 0.1, False)
    assert size == Interval("batch_size", 8, 64, True)
    assert isinstance(size.low, int)
    assert strategy == Choice("strategy", {"full": {"strategy": "full"}, "lp_ft": {"strategy": "lp_ft"}})
    assert [one["unfreeze_layers"] for one in layers.options.values()] == [("layer4",), ("layer3", "layer4")]


def test_a_grid_is_every_combination():
    search = read("weight_decay=0,1e-3", "strategy=full,lp_ft,linear_probe")
    assert len(search.combinations) == 6
    assert len({json.dumps(values) for values in search.combinations}) == 6
    found = {(one.weight_decay, one.strategy) for one in search.checked_configs()}
    assert found == {(decay, name) for decay in (0, 1e-3) for name in ("full", "lp_ft", "linear_probe")}
    assert read("weight_decay=0,1e-3", "learning_rate=1e-4..1e-3").combinations is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=1e-3,1e-2", "has no field 'lr'"),
        ("learnig_rate=1e-3,1e-2", "did you mean 'learning_rate'?"),
        ("learning_rate", "must be NAME=A,B or NAME=LOW..HIGH"),
        ("learning_rate=", "must be NAME=A,B or NAME=LOW..HIGH"),
        ("=1,2", "has no field ''"),
        ("learning_rate=1e-2..1e-5", "the range is empty, as 1e-2 is not below 1e-5"),
        ("learning_rate=1e-3..1e-3", "the range is empty"),
        ("learning_rate=0..1e-2", "learning_rate = 0.0: must be a number above 0"),
        ("learning_rate=-1..1e-2", "learning_rate = -1.0: must be a number above 0"),
        ("learning_rate=1e-5..inf", "learning_rate = inf: must be a number above 0"),
        ("learning_rate=nan..1e-2", "learning_rate = nan: must be a number above 0"),
        ("learning_rate=1e-5..fast", "learning_rate = 'fast': must be a number above 0"),
        ("learning_rate=1e-5..", "a range is LOW..HIGH"),
        ("learning_rate=..1e-5", "a range is LOW..HIGH"),
        ("learning_rate=1e-5...1e-2", "a range is LOW..HIGH"),
        ("learning_rate=1e-5..1e-2:log:log", "a range is LOW..HIGH or LOW..HIGH:log"),
        ("learning_rate=1e-5..1e-2:ln", "a range is LOW..HIGH or LOW..HIGH:log"),
        ("learning_rate=1e-5..1e-3,1e-2", "learning_rate = '1e-3,1e-2': must be a number above 0"),
        ("learning_rate=1e-3,-1", "learning_rate = -1.0: must be a number above 0"),
        ("weight_decay=0..0.1:log", "a logarithmic range begins above 0"),
        ("weight_decay=1e-3,0.001", "0.001 is there more than once"),
        ("weight_decay=1e-3,,1e-2", "weight_decay = '': must be a number"),
        ("dropout=0..1", "dropout = 1.0: must be a number from 0 up to but not including 1"),
        ("num_epochs=1.5..3", "num_epochs = '1.5': must be a whole number"),
        ("num_epochs=0..3", "num_epochs = 0: must be a whole number of 1 or more"),
        ("strategy=full,half", "strategy = 'half': must be full or"),
        ("strategy=1..3", "strategy = '1..3': must be full or"),
        ("wise_ft=yes,no", "wise_ft = 'yes': must be true or false"),
        ("batch_size=0..8:log", "batch_size = 0: must be a whole number of 1 or more"),
        ("wise_ft=0..1", "wise_ft = '0..1': must be true or false"),
        ("config=a,b", "has no field 'config'"),
        ("seed=0,1", "trials with another seed could not be compared"),
        ("split=random,spatial", "trials with another split could not be compared"),
        ("val_fraction=0.1..0.3", "trials with another val_fraction could not be compared"),
        ("num_workers=0,4", "changes where or how fast a training runs"),
        ("log_dir=a,b", "is set for each trial by the search itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched(text, message):
    with pytest.raises(ConfigError, match="search") as caught:
        parse_search([text])
    assert message in str(caught.value)
    assert f"--search {text}" in str(caught.value) or text == "=1,2"
    assert "\n\n" not in str(caught.value)


def test_contradictions_are_found_before_anything_is_trained():
    with pytest.raises(ConfigError, match="weight_decay is searched already"):
        read("weight_decay=0,1", "weight_decay=2,3")
    with pytest.raises(ConfigError, match="--weight_decay is set as well"):
        read("weight_decay=0,1", flags=("--weight_decay=1",))
    with pytest.raises(ConfigError, match="a search sets it for each trial"):
        read("weight_decay=0,1", flags=("--name", "x"))
    with pytest.raises(ConfigError, match="there is nothing to search"):
        read("weight_decay=0")
    with pytest.raises(ConfigError, match="there is nothing to search"):
        read()
    with pytest.raises(ConfigError, match="--prune_after 2 has no effect with --prune false"):
        read("weight_decay=0,1", prune=False, prune_after=2)
    with pytest.raises(ConfigError, match="--best 2 has no effect without --from_compare"):
        read("weight_decay=0,1", best=2)
    with pytest.raises(ConfigError, match="no images to search on"):
        read("weight_decay=0,1", data=None)
    with pytest.raises(ConfigError, match="the images are named twice"):
        read("weight_decay=0,1", flags=("--dataset_path", "others"))
    with pytest.raises(ConfigError, match="100,000 combinations"):
        read(*(f"{n}={','.join(str(i / 20) for i in range(10))}" for n in
               ("weight_decay", "dropout", "label_smoothing", "focal_gamma", "mixup_alpha")))  # fmt: skip
    # The ends of ranges and all lists are combined.
    search = read("wise_ft=true,false", "strategy=full,linear_probe", flags=("--probe_solver", "exact"))
    with pytest.raises(ConfigError, match="--search with wise_ft true, strategy linear_probe: "):
        search.checked_configs()


def comparison(path, *rows):
    """A comparison.json as compare writes it, as far as it is read."""
    cells = [
        FinetuneConfig.of({"dataset_path": "images", "seed": 1, "num_epochs": 7, **row}).to_dict() for row in rows
    ]
    content = {"rows": [{k: row[k] for k in ("backbone", "strategy")} for row in rows],
               "cells": [{"settings": cell, "result": {}} for cell in cells]}  # fmt: skip
    path.write_text(json.dumps(content))
    return str(path)


def test_the_best_rows_of_a_comparison(tmp_path):
    rows = [
        {"backbone": "resnet18", "strategy": "lp_ft", "weights": "r.pth", "learning_rate": 0.01},
        {"backbone": "mobilenet_v2", "strategy": "full"},
        {"backbone": "vgg11", "strategy": "full"},
    ]
    path = comparison(tmp_path / "comparison.json", *rows)
    search = read("weight_decay=0,1", from_compare=path, best=2, data=None)
    assert search.base.dataset_path == "images"
    assert search.base.seed == 0
    first, _, second, _ = search.checked_configs()
    assert (first.backbone, first.strategy, first.weights, first.learning_rate) == (
        "resnet18",
        "lp_ft",
        "r.pth",
        0.01,
    )
    assert (second.backbone, second.weights, second.num_epochs) == ("mobilenet_v2", None, 7)
    # What lp_ft sets by itself does not replace what it was compared with.
    usual = {"backbone": "resnet18", "strategy": "lp_ft", "learning_rate": 3e-4, "label_smoothing": 0.0}
    search = read("weight_decay=0,1", from_compare=comparison(tmp_path / "usual.json", usual, rows[1]), data=None)
    first = search.checked_configs()[0]
    assert (first.strategy, first.learning_rate, first.label_smoothing) == ("lp_ft", 3e-4, 0)
    # What all rows have in common of the images holds for the search, which looks at these images as well.
    of_images = {"split": "spatial", "block_size": 50.0, "rescale": "percentile"}
    in_blocks = comparison(tmp_path / "c.json", *(row | of_images for row in rows))
    search = read("weight_decay=0,1", from_compare=in_blocks, data=None)
    assert {name: getattr(search.base, name) for name in of_images} == of_images
    # Flags and what is searched outrank what the rows were compared with.
    search = read("learning_rate=1e-4,1e-3", flags=("--num_epochs", "3"), from_compare=path, data=None)
    assert len(search.combinations) == 6
    assert {(one.num_epochs, one.learning_rate) for one in search.checked_configs()} == {(3, 1e-4), (3, 1e-3)}
    with pytest.raises(ConfigError, match="strategy is set or searched, and each row"):
        read("strategy=full,lp_ft", from_compare=path)
    for name, text in (("none.json", None), ("broken.json", "{"), ("other.json", "{}"), ("list.json", "[1]"),
                       ("empty.json", '{"rows": [], "cells": []}')):  # fmt: skip
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="--from_compare"):
            read("weight_decay=0,1", from_compare=str(tmp_path / name))


def test_settings_make_room_for_what_is_searched():
    search = Search(FinetuneConfig.of({"dataset_path": "images"}), tuple(parse_search(["num_epochs=1..3"])))
    assert [one.num_epochs for one in search.checked_configs()] == [1, 3]
