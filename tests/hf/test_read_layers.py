"""In which layer of the tower the scores are read."""

import copy

import pytest
import torch

from globalcom2 import compress
from tiny import picture


@pytest.mark.parametrize(("features", "layer"), [(-2, -2), (-1, -1), (3, -2), ([1, -2, -3], -2)])
def test_scores_are_read_in_the_layer_of_the_features(tiny, features, layer):
    """Whatever is in the layers after it."""
    model = copy.deepcopy(tiny.model)
    model.config.vision_feature_layer = features
    model.model.multi_modal_projector.linear_1 = torch.nn.LazyLinear(64)
    for block in model.model.vision_tower.encoder.layers[4 + layer + 1 :]:
        block.self_attn.k_proj.weight.data.fill_(float("nan"))

    def kept(**options):
        with torch.no_grad(), compress(model, 0.3, **options) as compression:
            model(**tiny.inputs(["<image>"], [picture(168, 168)]))
        return compression.report[0].kept

    assert torch.equal(kept(), kept(layer=layer))
    assert not torch.equal(kept(), kept(layer=layer - 1))


def test_the_published_code_reads_the_last_layer(tiny):
    def kept(**options):
        with torch.no_grad(), compress(tiny.model, 0.3, exact=False, **options) as compression:
            tiny.model(**tiny.inputs(["<image>"], [picture(168, 168)]))
        return compression.report[0].kept

    assert torch.equal(kept(), kept(layer=-1))
    assert not torch.equal(kept(), kept(layer=-2))
