"""The options of ``sat-vg tune``."""

from dataclasses import dataclass

from sat_vg.backbone_finetuning.configs.ranges import PositiveInt, WholeNumber


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Options of ``sat-vg tune``."""

    data: str | None = None
    """Images, as for the training: class folders, or a .csv table. Unset: those of --from_compare, --config or
    --dataset."""
    search: tuple[str, ...] | None = None
    """What is searched: NAME=A,B for values (NAME=A|B where they have commas), NAME=LOW..HIGH for a range, with :log
    at its end for a logarithmic one. Several have spaces between them. NAME is a field of the training."""
    trials: PositiveInt | None = None
    """Number of trainings, those of earlier calls included. Unset: 20, or where all are lists every combination."""
    out: str = "tuning"
    """Folder of the trials and of the results."""
    from_compare: str | None = None
    """comparison.json of sat-vg compare: its best rows are searched as well, each with its backbone, strategy,
    weights and settings."""
    best: PositiveInt = 3
    """Number of rows of --from_compare."""
    prune: bool = True
    """Stop a trial after an epoch in which it is below the median of the trials before (from the fifth trial on)."""
    prune_after: WholeNumber | None = None
    """Epochs in which no trial is stopped. Unset: a third of num_epochs, 1 at least."""
    keep_models: bool = False
    """Keep the checkpoints of all trials, not of the best alone."""
    dry_run: bool = False
    """Check the search and say what it is; train nothing."""
