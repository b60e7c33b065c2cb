"""The notebook of the docs, run from its first cell to its last; run as a program, it stores the outputs anew."""

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NOTEBOOK = REPOSITORY / "docs/tutorial.ipynb"

pytestmark = pytest.mark.recipe


# For the tests: fewer images and epochs than readers see.
QUICK = {"train_per_class=24, val_per_class=8": "train_per_class=6, val_per_class=3", "num_epochs=5": "num_epochs=2"}


def executed(folder: Path, changes: Mapping[str, str]):
    """The notebook as it comes out of a kernel that works in this folder, with changes to its text."""
    import nbformat
    from nbclient import NotebookClient

    text = NOTEBOOK.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    notebook = nbformat.reads(text, as_version=4)
    # The commands of this environment, as where it is activated; what is cached is kept in the folder, too.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    settings = {
        **os.environ,
        "PATH": path,
        "SAT_VG_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute(env=settings)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    return notebook


def printed(notebook) -> dict[str, str]:
    """What each cell of code printed, by its first line."""
    return {
        cell.source.splitlines()[-1]: "".join(
            output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def maps_of(notebook) -> list[str]:
    return [line for text in printed(notebook).values() for line in text.splitlines() if ", stride " in line]


def require_nbclient():
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'sat_vg[dev]'")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    require_nbclient()
    return executed(tmp_path_factory.mktemp("tutorial"), QUICK)


def test_the_notebook_runs_to_its_end(fresh):
    text = "".join(printed(fresh).values())
    assert "errors: []" in text
    assert "dry run: nothing was trained" in text
    assert re.search(r"done: validation accuracy \d+\.\d\d % \(epoch \d\)", text)
    assert len(re.findall(r"^ +\d +[\d.]+ +[\d.]+ +[\d.]+$", text, re.MULTILINE)) == 2  # the history
    assert len(re.findall(r"^river_\d{4}\.jpg: \w+ \(\d+ %\)$", text, re.MULTILINE)) == 3
    assert "of 30 images" in text
    assert "report.html" in text
    assert maps_of(fresh) == [
        "layer1: [2, 64, 24, 32], stride 4",
        "layer2: [2, 128, 12, 16], stride 8",
        "layer3: [2, 256, 6, 8], stride 16",
        "layer4: [2, 512, 3, 4], stride 32",
    ]


def test_the_stored_outputs_are_those_of_the_cells_and_tell_nothing_of_a_machine(fresh):
    import nbformat

    stored = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert maps_of(stored) == maps_of(fresh)
    assert [bool(text) for text in printed(stored).values()] == [bool(text) for text in printed(fresh).values()]
    text = NOTEBOOK.read_text(encoding="utf-8")
    for trace in ("/home/", "/tmp/", "/root", "/work", "/usr/", "site-packages", "Traceback", '"stderr"'):
        assert trace not in text, trace
    assert len(text) < 60_000


if __name__ == "__main__":
    import nbformat

    with tempfile.TemporaryDirectory() as place:
        nbformat.write(executed(Path(place), {}), NOTEBOOK)
    print(f"stored the outputs in {NOTEBOOK}")
