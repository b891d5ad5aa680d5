"""Blocks, threads, tasks, pickles, shared towers and replaced methods: which compression a call goes through."""

import asyncio
import copy
import functools
import pickle
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
import torch

from calls import GREEDY, NEW, generate
from globalcom2 import InputError, UnsupportedModelError, apply, compress, remove
from globalcom2.hf.cache import CACHE
from globalcom2.hf.compression import current
from tiny import footprint, llava_next, picture


@pytest.fixture
def inputs(llava):
    return llava.inputs(["a <image> b"], [picture(168, 168)])


def lengths(model, inputs):
    """Length of the prompt that the language model reads."""
    with torch.no_grad():
        return model(**inputs).logits.shape[1]


def expected_lengths(model, inputs, ratios):
    found = {}
    for ratio in ratios:
        with compress(model, ratio):
            found[ratio] = lengths(model, inputs)
    assert len(set(found.values())) == len(ratios)
    return found


def test_threads_with_a_block_each(tiny, inputs):
    ratios = [0.1, 0.25, 0.5, 0.75]
    expected = expected_lengths(tiny.model, inputs, ratios)
    barrier, found = threading.Barrier(len(ratios), timeout=60), {}

    def work(ratio):
        barrier.wait()
        with compress(tiny.model, ratio) as compression:
            barrier.wait()  # all are inside
            for _ in range(3):
                found.setdefault(ratio, set()).add(lengths(tiny.model, inputs))
            found[ratio].add(
                compression.report.tokens_after - compression.report.tokens_before + inputs["input_ids"].shape[1]
            )
            barrier.wait()

    threads = [threading.Thread(target=work, args=(ratio,)) for ratio in ratios]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == {ratio: {length} for ratio, length in expected.items()}


def test_tasks_with_a_block_each(tiny, inputs):
    ratios = [0.1, 0.25, 0.5]
    expected = expected_lengths(tiny.model, inputs, ratios)

    async def work(ratio):
        with compress(tiny.model, ratio):
            await asyncio.sleep(0)
            first = lengths(tiny.model, inputs)
            await asyncio.sleep(0)
            return first, lengths(tiny.model, inputs)

    async def together():
        return await asyncio.gather(*(work(ratio) for ratio in ratios))

    assert asyncio.run(together()) == [(expected[ratio],) * 2 for ratio in ratios]


def test_a_thread_without_a_block_follows_the_last_one_and_is_warned_where_they_differ(tiny, inputs):
    expected = expected_lengths(tiny.model, inputs, [0.1, 0.5])
    inside, done, found = threading.Event(), threading.Event(), []

    def other():
        with compress(tiny.model, 0.5):
            inside.set()
            done.wait(60)

    def third():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append(
                (
                    lengths(tiny.model, inputs),
                    [str(w.message) for w in caught if "whose settings differ" in str(w.message)],
                )
            )

    with compress(tiny.model, 0.1):
        thread = threading.Thread(target=third)
        thread.start(), thread.join()
        helper = threading.Thread(target=other)
        helper.start(), inside.wait(60)
        assert lengths(tiny.model, inputs) == expected[0.1]  # this thread has a block of its own
        thread = threading.Thread(target=third)
        thread.start(), thread.join()
        done.set(), helper.join()
    (first, quiet), (second, warned) = found
    assert (first, quiet) == (expected[0.1], [])
    assert second == expected[0.5]
    assert len(warned) == 1


def test_applying_again_leaves_no_moment_uncompressed(tiny):
    model, stop, missed = tiny.model, threading.Event(), []

    def look():
        while not stop.is_set():
            if current(model) is None:
                missed.append(True)

    apply(model, 0.1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=look) for _ in range(3)]
    try:
        [thread.start() for thread in threads]
        for number in range(300):
            apply(model, (0.1, 0.5)[number % 2])
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        [thread.join() for thread in threads]
        remove(model)
    assert not missed
    assert current(model) is None


def test_a_call_that_outlives_its_block_ends_as_it_began(tiny, inputs):
    """A streamer's thread goes on after the block has ended: its tap stays until then."""
    model, before = tiny.model, footprint(tiny.model)
    with compress(model, 0.25):
        expected = generate(model, inputs)
    entered, left, found = threading.Event(), threading.Event(), []
    attention = model.model.vision_tower.encoder.layers[0].self_attn

    def wait(*_):
        entered.set()
        left.wait(60)

    hook = attention.register_forward_pre_hook(wait)
    try:
        with compress(model, 0.25):
            thread = threading.Thread(target=lambda: found.append(generate(model, inputs)))
            thread.start(), entered.wait(60)
    finally:
        hook.remove()
    assert current(model) is None
    left.set(), thread.join()
    assert torch.equal(found[0], expected)
    assert footprint(model) == before


@pytest.mark.parametrize("how", ["pickle", "another process"])
def test_an_applied_model_can_be_pickled(tiny, inputs, tmp_path, how):
    plain = generate(tiny.model, inputs)
    with compress(tiny.model, 0.25):
        expected, short = generate(tiny.model, inputs), lengths(tiny.model, inputs)
    model = llava_next().model  # transformers' own hooks of a first call cannot be pickled
    apply(model, 0.25)
    if how == "pickle":
        loaded = pickle.loads(pickle.dumps(model))
        assert torch.equal(generate(loaded, inputs), expected)
        assert lengths(loaded, inputs) == short
        remove(loaded)
        assert torch.equal(generate(loaded, inputs), plain)
        assert not loaded._forward_pre_hooks
        assert "forward" not in loaded.__dict__
    else:
        torch.save({"model": model, "inputs": dict(inputs), "expected": expected}, tmp_path / "applied.pt")
        code = (
            "import sys, torch\n"
            f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
            # transformers records hidden states of classes that were built here, also of pickled stock models.
            "from tiny import llava_next; llava_next()\n"
            "saved = torch.load(sys.argv[1], weights_only=False)\n"
            f"out = saved['model'].generate(**saved['inputs'], **{GREEDY!r})\n"
            "print(torch.equal(out, saved['expected']))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "applied.pt")], capture_output=True, text=True
        )
        assert done.stdout.strip() == "True", done.stderr
    remove(model)


def test_a_model_pickled_inside_a_block_is_a_plain_one(tiny, inputs):
    plain, model = generate(tiny.model, inputs), llava_next().model
    with compress(model, 0.25):
        loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(generate(loaded, inputs), plain)


def test_two_models_share_a_tower(tiny, inputs):
    first, second = copy.deepcopy(tiny.model), copy.deepcopy(tiny.model)
    second.model.vision_tower = first.model.vision_tower
    before = footprint(first), footprint(second)
    with compress(first, 0.25) as outer:
        expected = generate(first, inputs)
        with compress(second, 0.25):
            assert torch.equal(generate(second, inputs), expected)
        assert torch.equal(generate(first, inputs), expected)
        assert len(outer.report) == 1
    assert (footprint(first), footprint(second)) == before


def test_a_method_that_is_replaced_inside_a_block_stays(tiny, inputs):
    model = copy.deepcopy(tiny.model)
    plain = generate(model, inputs)
    with compress(model, 0.25):
        ours = generate(model, inputs)
        model.generate = functools.partial(model.generate, max_new_tokens=NEW)
        assert torch.equal(model.generate(**inputs, do_sample=False), ours)
        forward = model.forward
        model.forward = functools.wraps(forward)(lambda *args, **kwargs: forward(*args, **kwargs))
        short = lengths(model, inputs)
    assert isinstance(model.generate, functools.partial)
    assert torch.equal(model.generate(**inputs, do_sample=False), plain)
    assert lengths(model, inputs) == inputs["input_ids"].shape[1] > short
    with compress(model, 0.25):
        assert torch.equal(model.generate(**inputs, do_sample=False), ours)
        assert lengths(model, inputs) == short
    del model.generate, model.forward
    assert footprint(model) == footprint(copy.deepcopy(tiny.model)) or not model._forward_pre_hooks


@pytest.mark.parametrize("bound", [False, True])
def test_forward_that_was_taken_away_comes_back(tiny, inputs, bound):
    """accelerate's unwrap_model puts the class's own forward back, trl a forward of its own; no call falls through."""
    model, count = tiny.model, inputs["input_ids"].shape[1]
    more = torch.tensor([[60, 61]])
    with compress(model, 0.25, logits="full") as compression, torch.no_grad():
        whole = model(**{**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1), "attention_mask": None})
        for _ in range(2):
            if bound:
                model.forward = types.MethodType(type(model).forward, model)
            else:
                del model.__dict__["forward"]
            compression.forget()
            out = model(**inputs, use_cache=True)
            assert out.logits.shape[1] == count  # put back to the caller's places after the call
            assert len(compression.report) == 1
            mask = torch.ones(1, count + 2, dtype=torch.long)
            step = model(input_ids=more, attention_mask=mask, **{CACHE: getattr(out, CACHE)})
            torch.testing.assert_close(step.logits, whole.logits[:, -2:], atol=2e-5, rtol=1e-4)
        hidden = model.model(**inputs).last_hidden_state
        assert hidden.shape[1] == count
        assert len(compression.report) == 0
    model.__dict__.pop("forward", None)


def test_a_report_of_a_block_that_was_never_entered_warns(tiny, inputs):
    compression = compress(tiny.model, 0.25)
    generate(tiny.model, inputs)
    with pytest.warns(UserWarning, match="was never entered"):
        assert len(compression.report) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with compression:
            generate(tiny.model, inputs)
            assert len(compression.report) == 1
        assert len(compression.report) == 1
        apply(tiny.model, 0.25)
        assert len(current(tiny.model).report) == 0
        remove(tiny.model)


def test_a_model_without_a_head_is_refused_before_anything_is_patched(tiny, inputs):
    before = footprint(tiny.model)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="got LlavaNextModel, which has no head"):
            compress(tiny.model.model, 0.25)
        with pytest.raises(UnsupportedModelError, match="which has no head"):
            apply(tiny.model.model, 0.25)
    assert footprint(tiny.model) == before


def test_embeddings_beside_ids_and_pixels_pass_through(tiny, inputs):
    embeds = tiny.model.get_input_embeddings()(inputs["input_ids"])

    def call():
        return tiny.model.generate(**inputs, inputs_embeds=embeds, **GREEDY)

    try:
        plain = call()
    except Exception as error:  # whatever the stock model says
        plain = type(error)
    with compress(tiny.model, 0.25) as compression:
        if isinstance(plain, type):
            with pytest.raises(plain):
                call()
        else:
            assert torch.equal(call(), plain)
        assert len(compression.report) == 0


def test_an_encoders_output_of_the_callers_own_passes_through(tiny, inputs):
    encoded = tiny.model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
    call = {"input_ids": inputs["input_ids"], "mm_encoder_outputs": {"image": encoded}}
    with torch.no_grad():
        plain = tiny.model(**call).logits
        with compress(tiny.model, 0.25) as compression:
            assert torch.equal(tiny.model(**call).logits, plain)
            assert len(compression.report) == 0


def test_continuous_batching(tiny):
    """Prompts of text pass, whatever the ratio; the paged cache does not tell how long it is."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = copy.deepcopy(tiny.model)
    prompts = [tiny.inputs([text], None)["input_ids"][0].tolist() for text in ("one two", "three")]
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=2, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)

    def answers():
        out = model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=small)
        return sorted(tuple(answer.generated_tokens) for answer in out.values())

    plain = answers()
    for ratio in (1.0, 0.25):
        with compress(model, ratio) as compression:
            assert answers() == plain
            assert len(compression.report) == 0


def test_images_with_a_paged_cache_are_refused(tiny, inputs):
    class Paged:
        pass

    with compress(tiny.model, 0.25), pytest.raises(InputError, match="must not be given with a Paged"):
        tiny.model(**inputs, **{CACHE: Paged()})


def test_a_replica_runs_with_its_own_weights(tiny, inputs):
    """torch's DataParallel copies a model's attributes, its patches too, and calls the copy."""
    with compress(tiny.model, 0.25) as compression, torch.no_grad():
        plain = tiny.model(**inputs).logits
        replica = tiny.model._replicate_for_data_parallel()
        replica._modules["lm_head"] = copy.deepcopy(tiny.model.lm_head)
        replica.lm_head.weight.data.neg_()
        torch.testing.assert_close(replica(**inputs).logits, -plain)
        assert len(compression.report) == 1
        assert torch.equal(tiny.model(**inputs).logits, plain)
