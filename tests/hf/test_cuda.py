"""What only a GPU can show: waits, selection inside a CUDA graph, and decoding with a static cache and compiled graphs."""

from pathlib import Path

import pytest
import torch

import globalcom2
from families.native import NATIVE
from globalcom2 import Views, compress, select
from globalcom2.adapters.llava_next import LlavaNextAdapter
from globalcom2.adapters.native import windows
from tiny import picture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
PICTURES = [picture(120, 144, 1), picture(48, 40, 2), picture(160, 32, 3)]
"""Of native families 18 x 15 tokens, which are 2 x 2 windows, 5 x 6 and 4 x 20."""


def native_inputs(tiny):
    return tiny.inputs([f"what {tiny.tag} is", f"{tiny.tag} or{tiny.tag}?"], PICTURES)


def on_gpu(inputs, dtype=torch.float32):
    return {name: x.to("cuda", dtype if x.is_floating_point() else x.dtype) for name, x in inputs.items()}


def is_captured(masks, *shapes):
    """Capture `masks` of zeros of these shapes, and compare replays on drawn values with plain calls."""
    places = [torch.zeros(shape, device="cuda") for shape in shapes]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # kernels must have run once before they are captured
        masks(*places)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = masks(*places)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        drawn = [torch.randn(shape, generator=generator).to("cuda") for shape in shapes]
        for place, values in zip(places, drawn, strict=True):
            place.copy_(values)
        graph.replay()
        expected = masks(*drawn)
        assert sum(int(mask.sum()) for mask in expected) > 0
        for mask, own in zip(captured, expected, strict=True):
            assert torch.equal(mask, own)


@pytest.mark.parametrize("newlines", ["counted", "all", "none"])
@pytest.mark.parametrize("method", ["globalcom2", "uniform"])
def test_selection_is_captured_by_a_graph(llava, method, newlines):
    """Sizes follow from the image's size alone, so a graph captured for some scores selects rightly for all others."""
    layout = LlavaNextAdapter().layout(llava.model.config, 168, 168)
    valid, lines = layout.valid.pin_memory(), layout.lines.pin_memory()  # what a graph copies must be pinned

    def masks(crops, thumbnails):
        views = Views(crops, valid, layout.grid, None, thumbnails, layout.token_grid, lines)
        keep = select(views, 0.2, method, newlines=newlines, check=False)
        return keep.thumbnail, keep.crops, keep.newlines

    is_captured(masks, (2, *layout.valid.shape), (2, layout.tokens))


@pytest.mark.parametrize("method", ["globalcom2", "globalcom2:allocation=softmax", "uniform"])
def test_selection_with_a_guide_is_captured_by_a_graph(method):
    layout = windows(20, 33)
    valid, (height, width) = layout.valid.pin_memory(), layout.guide_grid

    def masks(crops, guides):
        own = {"guide_scores": guides, "guide_grid": layout.guide_grid, "score_type": "similarity"}
        views = Views(crops, valid, layout.grid, token_grid=layout.token_grid, **own)
        return (select(views, 0.2, method, check=False).crops,)

    is_captured(masks, (2, *layout.valid.shape), (2, height * width))


@pytest.fixture
def exact_convolutions(monkeypatch):
    """Towers embed patches by convolutions, which a GPU computes in TF32 where it may."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def answered(model, inputs, guide):
    """Kept places of each image, and logits and tokens of a greedy answer, on the host."""
    with torch.no_grad(), compress(model, 0.3, guide=guide) as compression:
        out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
        kept = [entry.kept.cpu() for entry in compression.report]
    return kept, torch.stack(out.logits).cpu(), out.sequences[:, -GREEDY["max_new_tokens"] :].cpu()


@pytest.mark.parametrize("guide", ["pooled", "thumbnail"])
@pytest.mark.parametrize("family", NATIVE)
def test_native_families_on_a_gpu_as_on_a_cpu(family, guide, exact_convolutions):
    tiny = NATIVE[family]()
    inputs = dict(native_inputs(tiny))
    kept, logits, tokens = answered(tiny.model, inputs, guide)
    model = tiny.model.to("cuda")
    model.generate(**on_gpu(inputs), **GREEDY)  # that this fails would be no fault of compression
    own_kept, own_logits, own_tokens = answered(model, on_gpu(inputs), guide)
    for mask, own in zip(kept, own_kept, strict=True):
        assert torch.equal(mask, own)
    assert torch.equal(tokens, own_tokens)
    torch.testing.assert_close(own_logits, logits, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("family", NATIVE)
def test_native_families_in_bfloat16(family):
    """Totals follow from sizes, whatever rounding makes of scores."""
    tiny = NATIVE[family]()
    model = tiny.model.to("cuda", torch.bfloat16)
    inputs = on_gpu(native_inputs(tiny), torch.bfloat16)
    with torch.no_grad(), compress(model, 0.1) as compression:
        out = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    assert [entry.tokens_after for entry in compression.report] == [27, 3, 8]
    assert torch.stack(out.logits).isfinite().all()


def waits_of_ours(model, tower, inputs, **settings):
    """Where, between tower and language model, this package makes the host wait for the device."""
    hooks = []
    try:
        with torch.no_grad(), compress(model, 0.3, **settings):
            model(**inputs)  # caches
            hooks += [
                tower.register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("warn")),
                model.model.language_model.register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode(0)),
            ]
            with pytest.warns(UserWarning, match="synchroniz") as caught:
                model(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode(0)
        for hook in hooks:
            hook.remove()
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    # transformers waits when it checks its placeholders, in an uncompressed call too
    return [wait for wait in waits if wait.startswith(str(Path(globalcom2.__file__).parent))]


def test_one_wait_between_tower_and_language_model(llava):
    """torch's debugging mode finds no other wait of ours than the copy in `groups.on_host`."""
    model = llava.model.to("cuda")
    try:
        waits = waits_of_ours(
            model, model.model.vision_tower, on_gpu(llava.inputs(["<image>"], [picture(168, 168, 1)]))
        )
    finally:
        model.to("cpu")
    assert len(waits) == 1, waits


@pytest.mark.parametrize("settings", [{}, {"guide": "thumbnail"}, {"score": "received"}])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_one_wait_in_native_families(family, settings):
    tiny = NATIVE[family]()
    model = tiny.model.to("cuda")
    waits = waits_of_ours(model, model.model.visual, on_gpu(native_inputs(tiny)), **settings)
    assert len(waits) == 1, waits


def same_with_a_static_cache(model, inputs):
    """A static cache makes transformers compile the decoding step into a CUDA graph."""
    with compress(model, 0.3):
        expected = model.generate(**inputs, **GREEDY)
        for _ in range(2):
            assert torch.equal(model.generate(**inputs, **GREEDY, cache_implementation="static"), expected)


def test_static_cache(llava):
    try:
        same_with_a_static_cache(llava.model.to("cuda"), on_gpu(llava.inputs(["a <image> b"], [picture(168, 168, 1)])))
    finally:
        llava.model.to("cpu")


def test_static_cache_of_a_native_family():
    tiny = NATIVE["qwen2_5_vl"]()
    same_with_a_static_cache(tiny.model.to("cuda"), on_gpu(native_inputs(tiny)))
