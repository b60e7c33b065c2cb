"""The garbage collector is off while large packages are imported and when a command ends, and at no other time."""

import gc
import subprocess
import sys

import pytest

from sat_vg.backbone_finetuning.utils.quick_imports import without_garbage_collection


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_collector_is_as_it_was_also_after_an_error(was_enabled):
    before = gc.isenabled()
    (gc.enable if was_enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), without_garbage_collection():
            assert not gc.isenabled()
            raise ImportError("no such package")
        assert gc.isenabled() is was_enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_an_ending_command_is_not_searched_for_garbage():
    program = """
import atexit, gc
from sat_vg.backbone_finetuning.utils.exit_codes import run_command
atexit.register(lambda: print("left to search:", len(gc.get_objects())))
run_command(lambda: print("frozen while it runs:", gc.get_freeze_count()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "frozen while it runs: 0"
    assert int(done.stdout.splitlines()[1].split(":")[1]) < 100
