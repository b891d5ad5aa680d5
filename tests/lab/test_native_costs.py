"""Estimates for images that keep their resolution: against the real processors, torch's counter and published sizes."""

import ast
import json
import math
import random
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from command import call
from families.native import NATIVE, TOKEN
from families.native_more import MORE
from globalcom2 import InputError, UnsupportedModelError, compress, estimate
from globalcom2.adapters.families import list_models, load_adapter
from globalcom2.adapters.resizing import limits_of, read_size, token_grid
from globalcom2.hf.cache import CACHE
from globalcom2.lab.costs import decode_flops, kv_cache_bytes
from globalcom2.lab.estimates import estimate_costs, native_configs, weight_bytes
from globalcom2.lab.native_costs import NATIVE as COUNTED
from globalcom2.lab.vision_costs import vision_cost
from tiny import picture

SIZE = (112, 72)
"""px: 14 x 9 tokens in every family, whatever it does with parts of tokens."""


BUILT = NATIVE | {name: make for name, make in MORE.items() if name in COUNTED}


@pytest.fixture(params=BUILT)
def family(request):
    tiny = BUILT[request.param]()
    tiny.model.set_attn_implementation("eager")
    tiny.model.config.get_text_config()._experts_implementation = "eager"  # the counter misses the grouped kernel
    return request.param, tiny, tiny.inputs([f"abc {tiny.tag}"], [picture(*SIZE)])


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


def test_a_whole_call_against_torchs_counter(family):
    """Tower, mergers, prefill, and the guide's pass of a compressed call: all that one forward multiplies."""
    name, tiny, inputs = family
    model, config = tiny.model, tiny.model.config

    def answer():
        return model.generate(**inputs, max_new_tokens=1, do_sample=False)

    text = int((inputs["input_ids"] != config.image_token_id).sum()) - 9 * (name == "mistral3")
    more = {"text_tokens": text, "processor": None if name == "kimi_k25" else tiny.processor}
    whole, part = estimate_costs(config, SIZE, [1.0, 0.3], guide="thumbnail", **more)
    assert whole["token_grid"] == [9, 14], whole
    assert whole["prompt_tokens"] == inputs["input_ids"].shape[1]
    near = 2e-3 if name == "ernie4_5_vl_moe" else 0  # it takes the two tags around an image for visual tokens
    assert whole["total_flops"] == pytest.approx(counted(answer), rel=near, abs=0)
    with compress(model, 0.3, guide="thumbnail", likeness=0.0) as compression:
        got = counted(answer)
    assert part["visual_tokens"] == compression.report.tokens_after
    assert part["total_flops"] == pytest.approx(got, rel=near, abs=0)
    assert part["tower_flops"] > whole["tower_flops"]
    for row in (whole, part):
        assert row["tower_share"] == (row["tower_flops"] + row["projector_flops"]) / row["total_flops"]
    (pooled,) = estimate_costs(config, SIZE, [0.3], **more)
    assert [pooled[key] for key in ("guide", "tower_flops")] == ["pooled", whole["tower_flops"]]
    (layout,) = load_adapter(name).layouts(model.base_model, dict(inputs))
    assert vision_cost(config, layout).tower == whole["tower_flops"]


@pytest.mark.parametrize("name", ["qwen3_5", "kimi_k25", "glm4v"])
def test_cache_and_a_step(name):
    """Recurrent states do not grow; DeepSeek's cache is short, and each step makes keys and values of it again."""
    tiny = NATIVE[name]()
    model, text = tiny.model, tiny.model.config.get_text_config()
    model.set_attn_implementation("eager")
    text._experts_implementation = "eager"
    inputs = tiny.inputs([f"abc {tiny.tag}"], [picture(*SIZE)])
    tokens = inputs["input_ids"].shape[1]
    out = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
    cache = getattr(out, CACHE)
    fields = [value for layer in cache.layers for value in vars(layer).values()]
    fields = [item for value in fields for item in (value.values() if isinstance(value, dict) else [value])]
    held = sum(item.numel() for item in fields if isinstance(item, torch.Tensor) and item.ndim > 2)
    assert kv_cache_bytes(text, tokens, 4) == 4 * held
    step = counted(lambda: model(input_ids=torch.tensor([[5]]), **{CACHE: cache}))
    assert decode_flops(text, tokens) == pytest.approx(step, rel=0.02 if name == "qwen3_5" else 1e-9)


@pytest.mark.parametrize("name", ["qwen2_vl", "glm4v", "glm46v", "paddleocr_vl", "ernie4_5_vl_moe", "mistral3"])
def test_sizes_are_the_processors(name):
    """The grids that the real processors make of 60 sizes, limits within reach on both sides."""
    tiny, draw = NATIVE[name](), random.Random(name)
    processor = tiny.processor.image_processor
    if name == "mistral3":
        size = {"longest_edge": 150}
    else:
        size = {"shortest_edge": 60 * TOKEN**2, "longest_edge": 200 * TOKEN**2}
    limits = limits_of(tiny.model.config, settings={**processor.to_dict(), "size": size})
    reached = set()
    for _ in range(60):
        width, height = draw.randint(3, 300), draw.randint(3, 300)
        made = processor(images=Image.new("RGB", (width, height)), size=size)
        sizes = made.get("image_sizes", made.get("image_grid_thw"))
        rows, cols = (int(side) for side in sizes[0][-2:])
        unit = TOKEN if name == "mistral3" else 2
        assert token_grid(tiny.model.config, height, width, limits) == (rows // unit, cols // unit), (height, width)
        reached |= {rows * cols < 65 * unit**2, rows * cols > 190 * unit**2}
    assert reached == {False, True}


def test_sizes_of_kimi():
    """Its processor's module needs torchvision, so the function is taken out of the file."""
    path = Path(find_spec("transformers").origin).parent / "models/kimi_k25/image_processing_kimi_k25.py"
    (wanted,) = (node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "navit_resize")
    space = {"math": math}
    exec(compile(ast.Module([wanted], []), str(path), "exec"), space)
    config = SimpleNamespace(
        model_type="kimi_k25", vision_config=SimpleNamespace(patch_size=14, merge_kernel_size=[2, 2])
    )
    draw = random.Random(0)
    for _ in range(300):
        width, height = draw.randint(2, 9000), draw.randint(2, 9000)
        patches, longest = draw.choice([64, 16384]), draw.choice([32, 512])
        limits = limits_of(config, {"max_patches": patches, "max_side_patches": longest})
        assert (
            read_size(config, height, width, limits) == space["navit_resize"](height, width, 14, 2, patches, longest)[1]
        )


def test_published_geometries():
    """Parameters of Qwen2.5-VL-7B and Qwen3-VL-8B, in thousand millions, as their pages on the hub tell them."""
    assert {name: round(weight_bytes(config) / 2e9, 2) for name, config in native_configs().items()} == {
        "qwen2.5-vl-7b": 8.29,
        "qwen3-vl-8b": 8.77,
    }


def test_where_limits_are_from():
    config = native_configs()["qwen2.5-vl-7b"]
    published = limits_of(config)
    assert dict(published.values) == {"min_pixels": 3136, "max_pixels": 12845056}
    file = {"size": {"shortest_edge": 5000, "longest_edge": 90000}, "min_pixels": 4000}
    mixed = limits_of(config, {"max_pixels": 70000}, file)
    assert dict(mixed.values) == {"min_pixels": 4000, "max_pixels": 70000}
    assert dict(mixed.sources) == {"min_pixels": "the processor's file", "max_pixels": "as given"}
    for given, message in (
        ({"longest_edge": 5}, "limits of qwen2_5_vl must be min_pixels or max_pixels"),
        ({"max_pixels": 0}, "max_pixels must be a whole number from 1 on, got 0"),
        ({"max_pixels": 3000}, "min_pixels must be at most max_pixels, got 3136 and 3000"),
    ):
        with pytest.raises(InputError, match=message):
            limits_of(config, given)
    with pytest.raises(InputError, match=r"processor of qwen2_5_vl takes, got 2x900 px"):
        read_size(config, 900, 2, published)


def test_a_family_without_formulas_is_refused():
    natives = {name for name in list_models() if load_adapter(name).native}
    assert set(BUILT) == set(COUNTED)
    assert set(COUNTED) <= natives
    for name in natives - set(COUNTED):
        with pytest.raises(UnsupportedModelError, match=f"got '{name}'"):
            estimate_costs(SimpleNamespace(model_type=name), (400, 300), [0.1])


def test_what_does_not_fit_the_family():
    config = native_configs()["qwen3-vl-8b"]
    with pytest.raises(InputError, match="convention must be 'ours' for qwen3_vl"):
        estimate_costs(config, (400, 300), [0.1], convention="paper")
    with pytest.raises(InputError, match=r"guide must be one of .*got 'none'"):
        estimate_costs(config, (400, 300), [0.1], guide="none")
    for more in ({"guide": "pooled"}, {"size_limits": {"max_pixels": 9}}):
        with pytest.raises(InputError, match="must be left out for llava_next"):
            estimate("llava-next-7b", (400, 300), **more)


def test_command(capsys, tmp_path):
    arguments = ("--image", "1344x896", "--retention", "1,0.1", "--max-visual-tokens", "64")
    code, out, err = call(capsys, "estimate", "--model", "qwen2.5-vl-7b", *arguments, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["visual_tokens"] for row in rows] == [1536, 154, 64]
    assert rows[0]["tower_flops"] == rows[1]["tower_flops"]
    assert {row["read_as"] for row in rows} == {"1344x896"}
    code, out, _ = call(capsys, "estimate", "--model", "qwen2.5-vl-7b", *arguments, "--max-pixels", "300000")
    assert (code, "23 x 15 tokens" in " ".join(out.split())) == (0, True)
    assert "max_pixels 300000 (as given)" in " ".join(out.split())
    tiny = NATIVE["qwen2_5_vl"]()
    tiny.model.config.save_pretrained(tmp_path)
    folder = ("--model", str(tmp_path), "--image", "113x70", "--retention", "0.5", "--json")
    alone, _ = call(capsys, "estimate", *folder)[1], tiny.processor.image_processor.save_pretrained(tmp_path)
    both = call(capsys, "estimate", *folder)[1]
    (alone,), (both,) = (json.loads(text)["rows"] for text in (alone, both))
    assert set(alone["size_limits_from"].values()) == {"published with Qwen2-VL and Qwen2.5-VL"}
    assert both["size_limits"] == {"min_pixels": 128, "max_pixels": 10**6}
    assert (both["token_grid"], both["visual_tokens"]) == ([9, 14], 63)


def test_the_page_shows_what_the_command_prints(capsys):
    page = (Path(__file__).parents[2] / "docs" / "costs.md").read_text()
    command, shown = page.split("$ globalcom2 estimate --model qwen2.5-vl-7b ")[1].split("```")[0].split("\n", 1)
    out = call(capsys, "estimate", "--model", "qwen2.5-vl-7b", *command.split())[1]
    assert [line.rstrip() for line in out.strip().splitlines()] == [
        line.rstrip() for line in shown.strip().splitlines()
    ]
