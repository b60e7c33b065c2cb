"""The page of best practices: its flags exist, and its figures stand on the pages of measurements that it names."""

import re

import pytest
from conftest import REPOSITORY

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig

PAGE = (REPOSITORY / "docs/troubleshooting.md").read_text(encoding="utf-8")
SECTIONS = {
    "Overfitting": "techniques", "Underfitting": "techniques", "It does not learn": "techniques", "Too slow": "speed",
    "Out of memory": "techniques", "Imbalance": "imbalance", "The figure cannot be true": "techniques",
}  # fmt: skip


def test_every_flag_is_an_option_of_the_training():
    flags = set(re.findall(r"--(\w+)", PAGE)) - {"dry_run"}
    assert len(flags) > 20
    assert flags <= {*FinetuneConfig.field_names()}


def test_every_value_is_allowed():
    spans = re.findall(r"`([^`]+)`", PAGE)
    written = [pair for span in spans for pair in re.findall(r"--(\w+) ([\w.]+)", span)]
    assert len(written) > 15
    for name, text in written:
        if text not in ("FILE", "DIR"):
            kind = {"true": True, "false": False}.get(text, text)
            number = re.fullmatch(r"\d+(\.\d+)?", text)
            value = (float(text) if "." in text else int(text)) if number else kind
            companions = {"wise_ft": {"strategy": "lp_ft"}, "last_layers": {"strategy": "last_layers"}}
            companions["cached_views"] = {"strategy": "last_layers"}
            FinetuneConfig.from_dict({**companions.get(name, {}), name: value})


@pytest.mark.parametrize("title", SECTIONS)
def test_every_figure_was_measured(title):
    rows = PAGE.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    table = [row for row in rows if row.startswith("| ")]
    assert len(table) >= 4
    for row in table:
        figures = re.findall(r"(?<![\w.])\d+\.\d\d(?!\d)", row)
        name = (re.findall(r"benchmarks/(\w+)\.md", row) or [SECTIONS[title]])[0]
        measured = (REPOSITORY / f"docs/benchmarks/{name}.md").read_text(encoding="utf-8")
        lacking = [figure for figure in figures if figure not in measured]
        assert not lacking, (row, lacking)
