"""Trainers that compare log-probabilities: trl's GRPO and DPO."""

import copy
import warnings

import pytest
import recipes
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from globalcom2 import compress
from independent import reports_keep

NAMES = ("pixel_attention_mask", "image_sizes", "token_type_ids", "mm_token_type_ids")


def lengths(completions, **_):
    """A reward that tells completions apart."""
    return [float(number) for number in range(len(completions))]


def grpo(model, tiny, folder, **more):
    arguments = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 5, "max_steps": 2}
    config = GRPOConfig(output_dir=str(folder), beta=0.0, **arguments, **recipes.QUIET, **more)
    rows = Dataset.from_list(recipes.examples())
    return GRPOTrainer(
        model, reward_funcs=lengths, args=config, train_dataset=rows, processing_class=copy.deepcopy(tiny.processor)
    )


def scores(trainer, model, inputs, length):
    """trl's own log-probabilities and entropies of the last tokens."""
    ids = inputs["input_ids"]
    more = {name: inputs[name] for name in NAMES if name in inputs}
    counts = {"num_images": [1] * len(ids)}
    if len(inputs["pixel_values"]) != len(ids):  # InternVL's images lie tile by tile
        counts["num_tiles"] = [len(inputs["pixel_values"])] + [0] * (len(ids) - 1)
    logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
        model, ids, inputs["attention_mask"], length,
        compute_entropy=True, pixel_values=inputs["pixel_values"], **counts, **more,
    )  # fmt: skip
    return logps, entropies


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("logits", [None, "full"])
def test_grpo_log_probabilities(family, tmp_path, when, logits):
    """Left-padded prompts with right-padded completions, as by hand and as each row alone."""
    model = recipes.fresh(family)
    inputs, length = recipes.batch(family)
    real = inputs["attention_mask"][:, -length:].bool()
    assert not real.all()
    trainer = grpo(model, family, tmp_path, temperature=0.7) if when == "before" else None
    with compress(model, 0.25, **({"logits": logits} if logits else {})) as compression, torch.no_grad():
        if trainer is None:
            trainer = grpo(model, family, tmp_path, temperature=0.7)
            scores(trainer, model, inputs, length)  # see test_a_trainer_made_inside_a_block
        ours, entropies = scores(trainer, model, inputs, length)
        keep = reports_keep(compression)
        assert compression.report.tokens_after < compression.report.tokens_before
        for row in range(2):
            alone, own = recipes.batch(family, (row,))
            logps, entropy = scores(trainer, model, alone, own)
            torch.testing.assert_close(ours[row, :own], logps[0], atol=2e-4, rtol=0)
            torch.testing.assert_close(entropies[row, :own], entropy[0], atol=2e-4, rtol=0)
    labels = recipes.text_labels(model, inputs)
    with torch.no_grad():
        expected = recipes.logps_by_hand(family.model, inputs, keep, labels, 0.7)[:, -length:]
    torch.testing.assert_close(ours[real], expected[real], atol=2e-4, rtol=0)
    assert not ours[~real].any()


def test_grpo_trains(family, tmp_path):
    """Policy and generation go through the same prompts; at nearly all tokens the steps are those of the plain model."""
    logs = {}
    for ratio in (None, 0.999, 0.25):
        torch.manual_seed(0)
        model = recipes.fresh(family)
        trainer = grpo(model, family, tmp_path, learning_rate=1e-3, logging_steps=1)
        if ratio is None:
            trainer.train()
        else:
            with compress(model, ratio) as compression:
                trainer.train()
            assert len(compression.report) == 2
        logs[ratio] = [
            (log["loss"], log["entropy"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log
        ]
    assert len(logs[None]) == 2
    for ours, plain in zip(logs[0.999], logs[None], strict=True):
        assert ours == pytest.approx(plain, rel=1e-3, abs=1e-5)
    assert any(abs(ours[1] - plain[1]) > 1e-3 for ours, plain in zip(logs[0.25], logs[None], strict=True))


def dpo(model, tiny, reference, folder, **more):
    config = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=2, max_steps=2, logging_steps=1, beta=0.5, max_length=None,
        learning_rate=1e-3, **recipes.QUIET, **more,
    )  # fmt: skip
    rows = Dataset.from_list(recipes.examples(chosen=recipes.CHOSEN, rejected=recipes.REJECTED))
    return DPOTrainer(model, reference, args=config, train_dataset=rows, processing_class=copy.deepcopy(tiny.processor))


def reference_of(tiny):
    """A reference that differs from the policy, or the first loss would be log 2 whatever is compressed."""
    model, generator = recipes.fresh(tiny), torch.Generator().manual_seed(5)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model


def test_dpo_loss_by_hand(family, tmp_path):
    """The first loss of a compressed run, from embeddings cut by hand."""
    model, reference = recipes.fresh(family), reference_of(family)
    trainer = dpo(model, family, reference, tmp_path)
    inputs = dict(next(iter(trainer.get_train_dataloader())))
    completion = inputs.pop("completion_mask")
    labels = inputs["input_ids"].masked_fill(completion == 0, recipes.IGNORED)
    with compress(model, 0.25, logits="full") as compression, compress(reference, 0.25, logits="full"), torch.no_grad():
        ours = trainer.compute_loss(model, {**inputs, "completion_mask": completion})
        keep = reports_keep(compression)
    with torch.no_grad():
        sums = [
            recipes.logps_by_hand(each, inputs, keep, labels).sum(1) for each in (family.model, reference_of(family))
        ]
    (chosen, rejected), (first, second) = (each.chunk(2) for each in sums)
    expected = -logsigmoid(0.5 * ((chosen - first) - (rejected - second))).mean()
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


def test_dpo_trains(family, tmp_path):
    names = ("loss", "grad_norm", "entropy", "logits/chosen", "logits/rejected", "logps/chosen", "mean_token_accuracy")
    logs = {}
    for ratio in (None, 0.999, 0.25):
        torch.manual_seed(0)
        model, reference = recipes.fresh(family), reference_of(family)
        trainer = dpo(model, family, reference, tmp_path)
        if ratio is None:
            trainer.train()
        else:
            with compress(model, ratio, logits="full") as compression, compress(reference, ratio, logits="full"):
                trainer.train()
            assert len(compression.report) == 4
        logs[ratio] = [[log[name] for name in names] for log in trainer.state.log_history if "loss" in log]
    assert len(logs[None]) == 2
    for ours, plain in zip(logs[0.999], logs[None], strict=True):
        assert ours == pytest.approx(plain, rel=1e-3, abs=1e-4)
    assert logs[0.25][0] != pytest.approx(logs[None][0], rel=1e-3)


def test_a_trainer_made_inside_a_block(llava_chat, tmp_path):
    """trl replaces `model.forward`, so that the first call goes round the block: compressed all the same, or warned of."""
    model = recipes.fresh(llava_chat)
    inputs, length = recipes.batch(llava_chat)
    with compress(model, 0.25) as compression, torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = grpo(model, llava_chat, tmp_path)
        first, _ = scores(trainer, model, inputs, length)
        reported = len(compression.report)
        second, _ = scores(trainer, model, inputs, length)
        assert len(compression.report) == 2
    warned = any(str(warning.message).startswith("globalcom2") for warning in caught)
    assert warned or (reported == 2 and torch.equal(first, second))


@pytest.mark.parametrize("when", ["before", "inside"])
def test_a_trainers_forward_outlives_the_block(llava_chat, tmp_path, when):
    """trl's own `model.forward` stays when a block ends, and is uncompressed."""
    inputs, length = recipes.batch(llava_chat)
    plain = recipes.fresh(llava_chat)
    model = recipes.fresh(llava_chat)
    trainer = grpo(model, llava_chat, tmp_path) if when == "before" else None
    with torch.no_grad():
        expected, _ = scores(grpo(plain, llava_chat, tmp_path), plain, inputs, length)
        with compress(model, 0.25):
            trainer = trainer or grpo(model, llava_chat, tmp_path)
            for _ in range(2):  # the first may go round the block
                short, _ = scores(trainer, model, inputs, length)
        after, _ = scores(trainer, model, inputs, length)
    assert not torch.allclose(short, expected, atol=1e-3)
    assert torch.equal(after, expected)
