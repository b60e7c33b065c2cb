"""Trainings of ``sat-vg compare`` and ``tune`` in the test's own process, in place of a process for each."""

from collections.abc import Iterator
from contextlib import redirect_stdout

from sat_vg.backbone_finetuning import train
from sat_vg.backbone_finetuning.commands.compare.training_process import EndedTraining, TrainingProcess


class TrainingHere(TrainingProcess):
    """Runs the training command's ``main``; its memory is told as half a GiB."""

    def lines(self) -> Iterator[str]:
        with self._output.open("w") as file, redirect_stdout(file):
            code = train.main(self._command[3:])
        self.ended = EndedTraining(code, 2**29, 1.0, None)
        yield from self._output.read_text().splitlines()
