"""The listing command: ``sat-vg backbones [NAME ...]``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.models.networks.facts import BackboneFacts, read_facts
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.utils.exit_codes import run_command
from sat_vg.backbone_finetuning.utils.terminal import say

_DESCRIPTION = """\
List the backbones with parameters (in millions, without the classifier), stages, and the maps that the feature
extractor gives by default. With names: every stage of each."""


@dataclass(frozen=True, kw_only=True)
class BackbonesOptions:
    """Options of ``sat-vg backbones``."""

    names: tuple[str, ...] = ()
    """Backbones, such as resnet50, microsoft/resnet-50, timm:NAME. Unset: all of torchvision's."""
    json: bool = False
    """Print one JSON object instead of tables."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg backbones") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        options = parse_options(BackbonesOptions, arguments, prog, _DESCRIPTION, {"names": "NAME"})
        show(options.names, options.json)

    return run_command(action)


def show(names: Sequence[str], as_json: bool = False) -> None:
    """Print the listing, or the stages of the backbones that are named. Raises ConfigError for an unknown name."""
    facts = [facts_of(name) for name in names] or list(read_facts().values())
    if as_json:
        say(json.dumps({one.name: one.to_dict() for one in facts}, indent=1))
        return
    if names:
        say("\n\n".join(stage_table(one) for one in facts))
        return
    say(listing(facts))
    say("\nchannels/stride: of the maps that the extractor gives by default; sat-vg backbones NAME shows every stage")
    say("pixels: of the training of the best published weights; the extractor takes images of any size")
    say("timm:NAME reaches what torchvision lacks, such as timm:pvt_v2_b2 (pip install 'sat_vg[timm]')")


def facts_of(name: str) -> BackboneFacts:
    """What is known of a backbone: looked up, or measured where it is timm's. Raises ConfigError for none."""
    if name in read_facts():
        return read_facts()[name]
    # Imported only now: torch takes seconds, and the table needs none.
    from sat_vg.backbone_finetuning.models.networks.measuring import measure
    from sat_vg.backbone_finetuning.models.networks.table import build_network, find_backbone

    row = find_backbone(name)
    if row.name in read_facts():
        return read_facts()[row.name]
    return measure(row, build_network(row, num_classes=2, image_size=224).eval())


def listing(facts: Sequence[BackboneFacts]) -> str:
    """A line for each backbone."""
    rows = [
        (
            one.name,
            one.family,
            f"{one.parameters / 1e6:.1f}",
            one.image_size or "-",
            len(one.stages),
            one.embed_dim,
            "  ".join(f"{stage.channels}/{stage.stride}" for stage in one.maps),
        )
        for one in facts
    ]
    header = ("backbone", "family", "M params", "pixels", "stages", "embed_dim", "channels/stride")
    return text_table(header, rows, left=(0, 1, 6))


def stage_table(facts: BackboneFacts) -> str:
    """A line for each stage."""
    wanted = {stage.name for stage in facts.maps}
    rows = [
        (
            stage.name,
            f"{stage.parameters:,}",
            stage.channels or "-",
            stage.stride or "-",
            "yes" if stage.name in wanted else "",
        )
        for stage in facts.stages
    ]
    trained_at = f"{facts.image_size} px, {facts.interpolation}" if facts.image_size else "none published"
    heading = (
        f"{facts.name}: {facts.family}, {facts.parameters / 1e6:.2f} M parameters, a pooled vector of "
        f"{facts.embed_dim}\n"
        f"weights: {', '.join(facts.weights) or 'none'} ({trained_at})"
    )
    return f"{heading}\n{text_table(('stage', 'parameters', 'channels', 'stride', 'map by default'), rows)}"
