"""Reports at a ratio of 1, where nothing of a call is changed."""

import pytest
import torch

from calls import IMAGE_ROWS, generate
from families import FAMILIES
from globalcom2 import compress
from tiny import picture


def report_of(model, inputs, ratio):
    with torch.no_grad(), compress(model, ratio) as compression:
        model(**inputs)
    return compression.report


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "internvl", "idefics3", "lfm2_vl", "ovis2"])
def test_everything_is_kept_of_the_images_that_a_compressed_call_reports(name):
    tiny = FAMILIES[name]()
    inputs = tiny.inputs([f"a {tiny.tag} b", f"{tiny.tag} c {tiny.tag}"], [picture(168, 84, n) for n in range(3)])
    whole, short = report_of(tiny.model, inputs, 1.0), report_of(tiny.model, inputs, 0.3)
    placeholders = int((inputs["input_ids"] == tiny.model.config.image_token_id).sum())
    assert whole.tokens_before == whole.tokens_after == placeholders == short.tokens_before
    assert whole.retention_ratio == 1.0
    for entry, other in zip(whole, short, strict=True):
        assert (entry.row, entry.grid, entry.tokens_before) == (other.row, other.grid, other.tokens_before)
        assert entry.tokens_after == entry.tokens_before
        assert bool(entry.kept.all())
        assert torch.equal(entry.keep.crops, entry.layout.valid)
        assert [mask.shape for mask in vars(entry.keep).values() if mask is not None] == [
            mask.shape for mask in vars(other.keep).values() if mask is not None
        ]
        assert entry.thumbnail_scores is entry.scores is None
        assert set(entry.crop_ratios) <= {1.0}
    assert whole.to_dict()["images"][0]["tokens_after"] == whole[0].tokens_before


def test_the_tower_runs_once_and_generation_keeps_the_report(tiny, batch):
    runs = []
    hook = tiny.model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    with compress(tiny.model, 1.0) as compression:
        generate(tiny.model, batch)
    hook.remove()
    assert len(runs) == 1
    assert [entry.row for entry in compression.report] == IMAGE_ROWS


def test_beams_are_the_stock_models_where_it_orders_images_in_its_own_way():
    tiny = FAMILIES["granite4_vision"]()
    inputs = tiny.inputs(["a <image><image>", "<image> b"], [picture(168, 84, n) for n in range(3)])
    plain = generate(tiny.model, inputs, num_beams=2, max_new_tokens=3)
    with compress(tiny.model, 1.0) as compression:
        out = generate(tiny.model, inputs, num_beams=2, max_new_tokens=3)
    assert torch.equal(out, plain)
    assert [entry.row for entry in compression.report] == [0, 0, 1]


def test_text_reports_nothing(tiny):
    assert len(report_of(tiny.model, tiny.inputs(["no picture"], None), 1.0)) == 0


def test_a_call_that_is_wrong_fails_as_it_does_without_a_block(tiny):
    inputs = tiny.inputs(["a <image> b"], [picture(168, 84)])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], inputs["input_ids"]])  # two prompts, pixels for one
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

    def error_of():
        with pytest.raises(Exception) as caught:
            tiny.model(**inputs)
        return str(caught.value)

    plain = error_of()
    with compress(tiny.model, 1.0) as compression:
        assert error_of() == plain
        assert len(compression.report) == 0
