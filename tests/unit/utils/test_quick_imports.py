"""The garbage collector is off for a block, and as it was after it, whatever happens within."""

import gc

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
