"""The best_model.pt, one or several, that a command runs on image files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL
from sat_vg.backbone_finetuning.models.ensemble import Ensemble, views_that_fit
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.prediction import require_bands_in_files
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, DeviceMemoryError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home


def model_file(given: str) -> Path:
    """The path of a best_model.pt; of a folder of checkpoints or of a run (runs/NAME) the one in it."""
    path = expand_home(given)
    if not path.is_dir():
        return path
    inside = [path / BEST_MODEL, path / "checkpoints" / BEST_MODEL]
    found = next((each for each in inside if each.is_file()), None)
    if found is None:
        raise CheckpointError(
            f"the folder {given!r} holds no {BEST_MODEL}, and neither does its folder checkpoints; give the path of "
            "the file, which a training writes into its checkpoint_dir"
        )
    return found


def load_model(path: Path) -> FineTuneModel:
    """The model of a best_model.pt. Raises UserError where it cannot be used, or cannot find its bands in files."""
    model = FineTuneModel.load_checkpoint(path)
    require_bands_in_files(model, repr(str(path)))
    return model


def load_ensemble(checkpoint: str, others: Sequence[str], num_views: int, tell: Callable[[str], object]) -> Ensemble:
    """The models that a command averages over; ``tell`` gets a line about what was decided.

    ``num_views`` of each image are taken where the first model was trained on images without an "up". Raises
    UserError where a file cannot be used or the models do not go together.
    """
    models = tuple(load_model(model_file(path)) for path in (checkpoint, *others))
    fitting = [views_that_fit(model, num_views) for model in models]
    num_views, note = min(fitting)
    ensemble = Ensemble(models, num_views)
    if note:
        tell(note)
    return ensemble


@contextmanager
def advising_smaller_batches(batch_size: int) -> Iterator[None]:
    """Turn torch's error of a device without enough memory into a DeviceMemoryError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"the device has too little memory for {batch_size} images at once ({str(error).splitlines()[0]}); use "
            f"--batch_size {max(1, batch_size // 2)}, or --device cpu"
        ) from error
