"""What keeps copies of a model alike, as far as one process can show it; the rest is in tests/distributed."""

import pytest
import torch
from torch import nn

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.assembly import share_statistics
from sat_vg.backbone_finetuning.training.replicas import DataParallelReplica
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.ranks import SingleProcess


class OneOfTwo(SingleProcess):
    """Adds what the other process would: ones."""

    count = 2

    def all_reduce_sum(self, *tensors):
        for tensor in tensors:
            tensor += 1


def statistics_of(model):
    return {name: buffer.clone() for name, buffer in model.network.named_buffers() if "running" in name}


def test_statistics_that_a_step_moves_become_means_and_frozen_ones_stay():
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32, freeze_layers=2).train()
    before = statistics_of(model)
    DataParallelReplica(model, model.training_outputs, OneOfTwo()).sync_buffers()
    after = statistics_of(model)
    frozen = [name for name in before if not model.network.get_submodule(name.rpartition(".")[0]).training]
    assert 0 < len(frozen) < len(before)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor if name in frozen else (tensor + 1) / 2), name


def test_shared_statistics_need_gpus_and_other_processes():
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32)
    for device, ranks in (("cpu", OneOfTwo()), ("cuda", SingleProcess())):
        with pytest.raises(ConfigError, match=r"sync_batch_norm = true.*vit_b_16"):
            share_statistics(model, torch.device(device), ranks)


def test_shared_statistics_keep_names_stages_and_weights():
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32, freeze_layers=2)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    share_statistics(model, torch.device("cuda"), OneOfTwo())
    after = model.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}
    model.train()
    assert [module.training for module in model.modules() if isinstance(module, nn.SyncBatchNorm)].count(False) > 0
    images = torch.rand(2, 3, 32, 32)
    plain = FineTuneModel("resnet18", 3, pretrained=False, image_size=32)
    plain.network.load_state_dict(before)
    assert torch.equal(model.eval()(images), plain.eval()(images))
