"""The backbones of the study of grounding: its cells, and what each start is fine-tuned on."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from mosaics import COUNTS, SIDE, Mosaics, make_mosaics, make_scenes, split_tiles
from runs import TRAIN, environment, flags_of, link_images

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_precision

STARTS = ("random", "imagenet", "full", "wise_ft", "last_layers", "coarse", "longer", "scenes", "placewise")
TRAINABLE = ("imagenet", "full")
FINETUNING = {  # flags of the fine-tuning by start; wise_ft is half way between imagenet and full
    "full": ["--strategy", "full"],
    "last_layers": ["--strategy", "last_layers", "--last_layers", "3"],
    "coarse": ["--strategy", "full"],
    "longer": ["--strategy", "full"],
    "scenes": ["--strategy", "full"],
    "placewise": ["--strategy", "full"],
}
PLACEWISE = str(Path(__file__).with_name("placewise.py"))
ON_SCENES = ("scenes", "placewise")  # fine-tuned on whole mosaics with one label; the others on single tiles
# The classes of "coarse", which are not what phrases name: EuroSAT's, by the kind of ground.
COARSE = {
    **dict.fromkeys(("AnnualCrop", "Forest", "HerbaceousVegetation", "Pasture", "PermanentCrop"), "plants"),
    **dict.fromkeys(("Highway", "Industrial", "Residential"), "built"),
    **dict.fromkeys(("River", "SeaLake"), "water"),
}
EPOCHS_OF_FINETUNING, EPOCHS_ON_SCENES = {"eurosat": 4, "ucmerced": 12}, 8
EPOCHS_OF_LONGER = {"eurosat": 16, "ucmerced": 91}  # as many pixels as those of "scenes"


@dataclass(frozen=True)
class Cell:
    """One training of grounding."""

    data: str
    start: str
    backbone: str
    seed: int

    @property
    def fine_tuning(self) -> tuple[str, int]:
        """Start and seed of the fine-tuning that it needs, if there is one of that name."""
        return ("full" if self.start == "wise_ft" else self.start, self.seed)


def all_cells(data_sets: Sequence[str], seeds: Sequence[int], wanted: Sequence[str]) -> list[Cell]:
    """Cells in the order in which they are run: seed by seed, so that what is done can be compared at any time."""
    cells = []
    for seed in seeds:
        for data in data_sets:
            starts = [start for start in STARTS if start != "coarse" or data == "eurosat"]
            cells += [Cell(data, start, "frozen", seed) for start in starts]
            cells += [Cell(data, start, "trainable", seed) for start in TRAINABLE]
            cells += [Cell(data, "no image", "frozen", seed)] if seed == seeds[0] else []
    return [cell for cell in cells if f"{cell.start} {cell.backbone}" in wanted]


@dataclass(frozen=True)
class Study:
    """The data of one name, where its backbones are kept, and what trains on it."""

    name: str
    root: Path
    weights: Path
    work: Path
    device: torch.device

    @cached_property
    def tiles(self) -> dict[str, dict[str, list[Path]]]:
        """See ``split_tiles``."""
        return split_tiles(self.root)

    @cached_property
    def splits(self) -> dict[str, Mosaics]:
        """The mosaics by split."""
        return {split: make_mosaics(self.tiles[split], split, self.name) for split in COUNTS}

    @cached_property
    def precision(self) -> Precision:
        """bf16 where the device computes in it."""
        return choose_precision(self.device, mixed_precision=True)

    def _folder(self, start: str, seed: int) -> Path:
        return self.work / f"{self.name}_{start}_seed{seed}"

    def backbone(self, start: str, seed: int) -> FineTuneModel:
        """The model whose backbone a cell starts from."""
        if start in FINETUNING:
            return FineTuneModel.load_checkpoint(self.fine_tune(start, seed))
        weights = "none" if start == "random" else str(self.weights)
        source = FineTuneModel("mobilenet_v2", 2, weights=weights, image_size=SIDE, seed=seed)
        if start == "wise_ft":
            mix_half(source, FineTuneModel.load_checkpoint(self.fine_tune("full", seed)))
        return source

    def fine_tune(self, start: str, seed: int) -> Path:
        """The best_model.pt of the training command on tiles that are in no mosaic of the grounding."""
        folder = self._folder(start, seed)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            on_scenes = start in ON_SCENES
            epochs = (EPOCHS_OF_LONGER if start == "longer" else EPOCHS_OF_FINETUNING)[self.name]
            flags = flags_of(
                dataset_path=self.scenes() if on_scenes else self._tiles_of(start, folder / "data"),
                backbone="mobilenet_v2", weights=self.weights, image_size=SIDE if on_scenes else 64, batch_size=32,
                num_epochs=EPOCHS_ON_SCENES if on_scenes else epochs, learning_rate=1e-3, seed=seed,
                device=self.device, log_dir=folder / "logs", checkpoint_dir=folder / "checkpoints", num_threads=1,
            )  # fmt: skip
            command = [sys.executable, PLACEWISE] if start == "placewise" else TRAIN
            with (folder / "out.txt").open("w") as out:
                subprocess.run(
                    [*command, *flags, *FINETUNING[start]], check=True, stdout=out, stderr=subprocess.STDOUT,
                    env=environment(folder),
                )  # fmt: skip
            shutil.rmtree(folder / "cache", ignore_errors=True)
            (folder / "done").touch()
        return folder / "checkpoints/best_model.pt"

    def _tiles_of(self, start: str, folder: Path) -> Path:
        """Links to the tiles in class folders, a tenth of each class held out."""
        for kind, files in self.tiles["finetune"].items():
            held_out = len(files) // 10
            label = COARSE[kind] if start == "coarse" else kind
            link_images(files[:held_out], folder / "val" / label)
            link_images(files[held_out:], folder / "train" / label)
        return folder

    def scenes(self) -> Path:
        """Mosaics with one label, drawn once."""
        folder = self.work / f"{self.name}_scenes"
        if not folder.exists():
            unfinished = self.work / f"{self.name}_scenes_unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            make_scenes(self.tiles["finetune"], self.name, unfinished)
            unfinished.rename(folder)
        return folder


@torch.no_grad()
def mix_half(source: FineTuneModel, trained: FineTuneModel) -> None:
    """Bring the backbone of ``source`` half way to that of ``trained`` (WiSE-FT; Wortsman et al., 2022)."""
    others = trained.network.state_dict()
    for name, tensor in source.network.state_dict().items():
        if tensor.is_floating_point() and tensor.shape == others[name].shape:
            tensor.lerp_(others[name], 0.5)
