import pytest
import torch

from sat_vg.backbone_finetuning.data.loading.mixing import Mixing, neighbours

IMAGES, TARGETS = torch.rand(6, 3, 16, 16), torch.eye(6)


def test_off_hands_everything_through():
    images, targets = Mixing(0.0, 0.0, seed=0)(IMAGES, TARGETS, 3)
    assert images is IMAGES
    assert targets is TARGETS


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_stay_distributions_and_follow_the_pixels(alphas):
    for step in range(20):
        images, targets = Mixing(*alphas, seed=0)(IMAGES, TARGETS, step)
        assert torch.allclose(targets.sum(1), torch.ones(6))
        share = targets[0, 0]
        assert targets[0, 1] == pytest.approx(1 - share.item(), abs=1e-6)
        own = (images[0] == IMAGES[0]).all(0).float().mean()
        if own > 0 and alphas[0] == 0:  # CutMix: the target's share is the share of pixels
            assert own.item() == pytest.approx(share.item(), abs=1e-6)
        if alphas[1] == 0:
            assert torch.allclose(images[0], share * IMAGES[0] + (1 - share) * IMAGES[1], atol=1e-6)


def test_a_function_of_seed_and_step():
    mixing = Mixing(0.8, 1.0, seed=4)
    assert torch.equal(mixing(IMAGES, TARGETS, 5)[0], mixing(IMAGES, TARGETS, 5)[0])
    assert not torch.equal(mixing(IMAGES, TARGETS, 5)[0], mixing(IMAGES, TARGETS, 6)[0])
    assert not torch.equal(mixing(IMAGES, TARGETS, 5)[0], Mixing(0.8, 1.0, seed=5)(IMAGES, TARGETS, 5)[0])


def test_even_parts_of_a_batch_mix_as_the_whole_does():
    whole = neighbours(8, torch.device("cpu")).tolist()
    assert whole == [1, 0, 3, 2, 5, 4, 7, 6]
    assert neighbours(5, torch.device("cpu")).tolist() == [1, 0, 3, 2, 4]
    mixing = Mixing(0.8, 0.0, seed=0)
    parts = [mixing(IMAGES[part], TARGETS[part], 2)[0] for part in (slice(0, 2), slice(2, 6))]
    assert torch.equal(torch.cat(parts), mixing(IMAGES, TARGETS, 2)[0])


def test_targets_with_several_classes_mix_in_the_same_share():
    targets = torch.tensor([[1.0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]])
    for alphas in ((0.8, 0.0), (0.0, 1.0)):
        mixing = Mixing(*alphas, seed=0)
        mixed, share = mixing(IMAGES[:4], targets, 1)[1], mixing(IMAGES, TARGETS, 1)[1][0, 0]
        assert torch.allclose(mixed, share * targets + (1 - share) * targets[[1, 0, 3, 2]])
        assert 0 < share < 1
