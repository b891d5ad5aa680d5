"""What only a GPU can show: waits, selection inside a CUDA graph, and decoding with a static cache and compiled graphs."""

from pathlib import Path

import pytest
import torch

import globalcom2
from globalcom2 import Views, compress, select
from globalcom2.adapters.llava_next import LlavaNextAdapter
from tiny import picture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("newlines", ["counted", "all", "none"])
@pytest.mark.parametrize("method", ["globalcom2", "uniform"])
def test_selection_is_captured_by_a_graph(llava, method, newlines):
    """Sizes follow from the image's size alone, so a graph captured for some scores selects rightly for all others."""
    layout = LlavaNextAdapter().layout(llava.model.config, 168, 168)
    shape = (2, *layout.valid.shape)
    crops, thumbnails = torch.zeros(shape, device="cuda"), torch.zeros(2, shape[2], device="cuda")
    valid, lines = layout.valid.pin_memory(), layout.lines.pin_memory()  # what a graph copies must be pinned

    def masks(crops, thumbnails):
        views = Views(crops, valid, layout.grid, None, thumbnails, layout.token_grid, lines)
        keep = select(views, 0.2, method, newlines=newlines, check=False)
        return keep.thumbnail, keep.crops, keep.newlines

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # kernels must have run once before they are captured
        masks(crops, thumbnails)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = masks(crops, thumbnails)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        drawn = [torch.randn(x.shape, generator=generator) for x in (crops, thumbnails)]
        for place, values in zip((crops, thumbnails), drawn, strict=True):
            place.copy_(values)
        graph.replay()
        for mask, expected in zip(captured, masks(*drawn), strict=True):
            assert torch.equal(mask.cpu(), expected)


def test_static_cache(llava):
    """A static cache makes transformers compile the decoding step into a CUDA graph."""
    model = llava.model.to("cuda")
    inputs = llava.inputs(["a <image> b"], [picture(168, 168, 1)]).to("cuda")
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    try:
        with compress(model, 0.3):
            expected = model.generate(**inputs, **greedy)
            for _ in range(2):
                assert torch.equal(model.generate(**inputs, **greedy, cache_implementation="static"), expected)
    finally:
        model.to("cpu")


def test_one_wait_between_tower_and_language_model(llava):
    """torch's debugging mode finds no other wait of ours than the copy in `groups.on_host`."""
    model, hooks = llava.model.to("cuda"), []
    inputs = llava.inputs(["<image>"], [picture(168, 168, 1)]).to("cuda")
    try:
        with torch.no_grad(), compress(model, 0.3):
            model(**inputs)  # caches
            hooks += [
                model.model.vision_tower.register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("warn")),
                model.model.language_model.register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode(0)),
            ]
            with pytest.warns(UserWarning, match="synchroniz") as caught:
                model(**inputs)
            waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
            # transformers waits when it checks its placeholders, in an uncompressed call too
            package = str(Path(globalcom2.__file__).parent)
            assert len([wait for wait in waits if wait.startswith(package)]) == 1, waits
    finally:
        torch.cuda.set_sync_debug_mode(0)
        for hook in hooks:
            hook.remove()
        model.to("cpu")
