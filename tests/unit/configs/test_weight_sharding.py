"""What does not go together with weights in shards."""

import pytest

from sat_vg.backbone_finetuning.configs.finetune_config import FIELDS_FREE_ON_RESUME, FinetuneConfig
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"batch_size": "auto"}, "give a number, for example 32"),
        ({"compile": True}, "leave one of the two out"),
        ({"channels_last": True}, "leave channels_last out"),
        ({"autocast_dtype": "fp16"}, "use bf16"),
        ({"strategy": "linear_probe", "probe_solver": "exact"}, "set probe_solver to sgd"),
        ({"strategy": "lp_ft", "probe_solver": "exact"}, "set probe_solver to sgd"),
    ],
)
def test_contradictions_name_the_way_out(settings, remedy):
    FinetuneConfig(**settings)
    with pytest.raises(ConfigError, match=remedy) as caught:
        FinetuneConfig(**settings, shard_weights=True)
    assert "shard_weights = True" in str(caught.value)
    assert next(iter(settings)) in str(caught.value)


def test_what_goes_together_and_may_change_on_a_resume():
    for settings in ({"strategy": "progressive"}, {"strategy": "lp_ft", "probe_solver": "sgd"}, {"ema_decay": 0.9}):
        assert FinetuneConfig(**settings, shard_weights=True, channels_last=False).shard_weights
    assert "shard_weights" in FIELDS_FREE_ON_RESUME
