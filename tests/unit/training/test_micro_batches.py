import pytest
import torch

from sat_vg.backbone_finetuning.training.micro_batches import MicroBatches, is_out_of_memory


def memory_for(most, log):
    def run(parts):
        log.append(parts)
        if -(-12 // parts) > most:
            raise torch.OutOfMemoryError("too little")
        return parts

    return run


def test_halves_until_it_fits_and_stays_there(capsys):
    micro, log, undone = MicroBatches(12), [], []
    assert micro.run_with_oom_retry(12, memory_for(3, log), lambda: undone.append(1)) == 4
    assert log == [1, 2, 4]
    assert len(undone) == 2
    assert micro.size == 3
    assert "--micro_batch_size 3" in capsys.readouterr().out
    assert micro.run_with_oom_retry(12, memory_for(3, log), lambda: undone.append(1)) == 4
    assert len(undone) == 2


def test_gives_up_where_nothing_smaller_is_left():
    micro, log = MicroBatches(12), []
    with pytest.raises(torch.OutOfMemoryError):
        micro.run_with_oom_retry(12, memory_for(0, log), lambda: None)
    assert log == [1, 2, 4, 12]


def test_other_errors_pass():
    def broken(parts):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        MicroBatches(4).run_with_oom_retry(4, broken, lambda: None)


def test_the_cpus_own_words_for_it():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("x"))
