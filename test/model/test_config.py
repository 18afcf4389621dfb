# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from egoedit_ros.errors import UserError
from egoedit_ros.model.config import CONFIGS, EditorConfig, get_config
from egoedit_ros.model.transformer import Transformer

# Wan's own counts (1,418,996,800 and 14,288,491,584) and the source's 16 input channels.
COUNTS = {
    "wan-1.3b": 1_418_996_800 + 16 * 4 * 1536,
    "wan-14b": 14_288_491_584 + 16 * 4 * 5120,
}


def _count(name):
    with torch.device("meta"):
        model = Transformer(get_config(name).transformer)
    assert all(p.is_meta for p in model.parameters())
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_wan_has_as_many_parameters_as_published(name):
    assert _count(name) == COUNTS[name]


def test_egoedit_has_the_papers_size():
    config = get_config("egoedit-10b").transformer
    assert (config.layers, config.dim, config.heads) == (32, 4096, 32)
    assert round(_count("egoedit-10b") / 1e9, 1) == 10.7


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_configuration_survives_json(name):
    import json

    config = get_config(name)
    assert EditorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_name():
    with pytest.raises(UserError, match="wan-1.3b"):
        get_config("wan-7b")
