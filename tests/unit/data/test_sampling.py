from hypothesis import given
from hypothesis import strategies as st

from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan, Part, RunningPass

plans = st.builds(BatchPlan, st.integers(1, 300), st.integers(1, 64), st.integers(0, 2**40))


@given(plans, st.integers(0, 1000))
def test_every_image_once_in_batches_of_nearly_equal_size(plan, epoch):
    batches = plan.batches(epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(plan.num_samples))
    assert len(batches) == plan.num_batches
    sizes = {len(batch) for batch in batches}
    assert sizes <= set(range(plan.batch_sizes[0], plan.batch_sizes[1] + 1))
    assert max(sizes) <= max(plan.batch_size, 3 if plan.batch_size == 2 else 1)
    assert max(sizes) - min(sizes) <= 1
    if plan.num_samples > 1 and plan.batch_size > 1:
        assert min(sizes) > 1


def test_a_pass_yields_what_was_begun_last():
    running = RunningPass()
    assert list(running) == []
    running.begin(Part.TRAINING, 3, [[4, 1], [2]])
    assert len(running) == 2
    running.begin(Part.VALIDATION, 0, [[5], [6, 7]])
    assert list(running) == [[(Part.VALIDATION, 0, 5)], [(Part.VALIDATION, 0, 6), (Part.VALIDATION, 0, 7)]]


def test_epochs_and_seeds_differ():
    plan = BatchPlan(100, 10, seed=0)
    assert plan.batches(0) == plan.batches(0)
    assert plan.batches(0) != plan.batches(1)
    assert plan.batches(0) != BatchPlan(100, 10, seed=1).batches(0)
