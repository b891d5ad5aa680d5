"""Supervised training: transformers' Trainer and Seq2SeqTrainer, trl's SFTTrainer, Accelerate's mixed precision."""

import copy
import inspect
import warnings

import pytest
import recipes
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from globalcom2 import compress
from independent import reports_keep

ON_IMAGES = "labels"


def arguments(folder, kind=TrainingArguments, **more):
    usual = {"max_steps": 1, "logging_steps": 1, "learning_rate": 1e-3, "max_grad_norm": 1e9}
    sizes = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "remove_unused_columns": False}
    return kind(output_dir=str(folder), **{**usual, **sizes, **recipes.QUIET, **more})


def trainer_of(model, inputs, labels, folder, kind=Trainer, settings=TrainingArguments, given=None, **more):
    """A trainer whose only batch is `inputs` with `labels`."""
    return kind(
        model=model,
        args=arguments(folder, settings, **more),
        train_dataset=[0, 1],
        eval_dataset=[0, 1],
        data_collator=lambda rows: {**inputs, "labels": labels.clone()},
        **(given or {}),
    )


def logged(trainer, name="loss"):
    return [log[name] for log in trainer.state.log_history if name in log]


@pytest.mark.parametrize("when", ["before", "inside"])
def test_loss_and_gradient(family, tmp_path, when):
    """One step of Trainer has the loss and the gradient of embeddings cut by hand."""
    model, other = recipes.fresh(family), recipes.fresh(family)
    inputs, _ = recipes.batch(family)
    labels = recipes.text_labels(model, inputs)
    trainer = trainer_of(model, inputs, labels, tmp_path) if when == "before" else None
    with compress(model, 0.25) as compression:
        trainer = trainer or trainer_of(model, inputs, labels, tmp_path)
        trainer.train()
        keep = reports_keep(compression)
        trained = {name: value.detach().clone() for name, value in model.named_parameters()}
        model.load_state_dict(family.model.state_dict())
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
    expected = recipes.loss_by_hand(other, inputs, keep, labels)
    expected.backward()
    assert logged(trainer) == pytest.approx([expected.item()], rel=1e-3)
    norm = torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None]).norm()
    assert logged(trainer, "grad_norm") == pytest.approx([norm.item()], rel=1e-3)
    ours, moved = dict(model.named_parameters()), []
    for name, theirs in other.named_parameters():
        if theirs.grad is not None and theirs.grad.abs().max() > 1e-4:
            torch.testing.assert_close(ours[name].grad, theirs.grad, atol=2e-4, rtol=2e-3)
            moved.append(name)
            assert not torch.equal(trained[name], theirs)
    assert any("vision" in name for name in moved)
    assert any("lm_head" in name or "embed_tokens" in name for name in moved)  # InternVL's are one matrix


def test_labels_on_images_change_nothing(family, tmp_path):
    """A collator that leaves labels on image tokens: they are ignored with a warning, and the mean is over the others."""
    inputs, _ = recipes.batch(family)
    labels = recipes.all_labels(inputs)
    text = recipes.text_labels(family.model, inputs)
    assert (labels != text).sum() > 50
    losses, norms = [], []
    for given in (labels, text):
        model = recipes.fresh(family)
        trainer = trainer_of(model, inputs, given, tmp_path)
        with compress(model, 0.25), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
            direct = model(**inputs, labels=given).loss.item()
        own = [str(w.message) for w in caught if str(w.message).startswith("globalcom2")]
        assert any(ON_IMAGES in message for message in own) == (given is labels), own
        losses.append([*logged(trainer), direct])
        norms.append(logged(trainer, "grad_norm"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_label_on_the_first_place(family, tmp_path):
    """Nothing predicts a row's first token, on the right of padding that only the short prompt has neither."""
    inputs, _ = recipes.batch(family)
    order = torch.argsort(1 - inputs["attention_mask"], dim=1, stable=True)  # all padding on the right, as trl lays it
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = inputs[name].gather(1, order)
    text = recipes.text_labels(family.model, inputs)
    first = text.clone()
    first[:, 0] = inputs["input_ids"][:, 0]
    losses = []
    for given in (first, text):
        model = recipes.fresh(family)
        with compress(model, 0.25) as compression, torch.no_grad():
            losses.append(model(**inputs, labels=given).loss.item())
    with torch.no_grad():
        expected = recipes.loss_by_hand(family.model, inputs, reports_keep(compression), text).item()
    assert losses == pytest.approx([expected, expected], rel=1e-4)


def test_gradient_accumulation(llava_chat, tmp_path):
    """Two halves of a batch, one row each, accumulate to the loss of all their labels."""
    model = recipes.fresh(llava_chat)
    halves = [recipes.batch(llava_chat, (row,))[0] for row in (0, 1)]
    labels = [recipes.text_labels(model, half) for half in halves]
    trainer = Trainer(
        model=model,
        args=arguments(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2),
        train_dataset=[0, 1],
        data_collator=lambda rows: {**halves[rows[0]], "labels": labels[rows[0]]},
    )
    with compress(model, 0.25):
        trainer.train()
    kept = []
    for half in halves:
        with compress(llava_chat.model, 0.25) as compression, torch.no_grad():
            llava_chat.model(**half)
        kept.append(reports_keep(compression))
    with torch.no_grad():
        sums = [
            recipes.logps_by_hand(llava_chat.model, half, keep, own).sum()
            for half, keep, own in zip(halves, kept, labels, strict=True)
        ]
    count = sum(int((own[:, 1:] != recipes.IGNORED).sum()) for own in labels)
    # transformers counts the first label of each row too, where the collator leaves one
    counts = {count, sum(int((own != recipes.IGNORED).sum()) for own in labels)}
    losses = [-float(sum(sums)) / each for each in counts]
    assert any(logged(trainer) == pytest.approx([loss], rel=1e-3) for loss in losses)


def test_columns_are_not_dropped(llava_chat, tmp_path):
    """Trainer looks at the signature of `model.forward`, inside a block as well, to drop columns of a dataset."""
    model = recipes.fresh(llava_chat)
    names = inspect.signature(model.forward).parameters
    inputs, _ = recipes.batch(llava_chat, (0,))
    row = {name: value[0].tolist() for name, value in inputs.items()}
    labels = recipes.text_labels(model, inputs)[0].tolist()
    rows = Dataset.from_list([{**row, "labels": labels, "note": 1}])
    with compress(model, 0.25) as compression:
        assert inspect.signature(model.forward).parameters.keys() == names.keys()
        trainer = Trainer(model=model, args=arguments(tmp_path, remove_unused_columns=True), train_dataset=rows)
        trainer.train()
        assert len(compression.report) == 1


def test_label_smoothing(family, tmp_path):
    """The smoother reads logits against the caller's labels."""
    model = recipes.fresh(family)
    inputs, _ = recipes.batch(family)
    labels = recipes.text_labels(model, inputs)
    trainer = trainer_of(model, inputs, labels, tmp_path, label_smoothing_factor=0.1)
    with compress(model, 0.25, logits="full") as compression:
        trainer.train()
        keep = reports_keep(compression)
    with torch.no_grad():
        logits = recipes.full_logits_by_hand(family.model, inputs, keep)
    smoothed = [LabelSmoother(0.1)({"logits": logits}, labels.clone(), shift_labels=shift) for shift in (False, True)]
    assert any(logged(trainer) == pytest.approx([loss.item()], rel=1e-3) for loss in smoothed)


def shifted_loss(outputs, labels, num_items_in_batch=None):
    return cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=recipes.IGNORED)


def test_a_loss_of_ones_own(family, tmp_path):
    model = recipes.fresh(family)
    inputs, _ = recipes.batch(family)
    labels = recipes.text_labels(model, inputs)
    given = {"compute_loss_func": shifted_loss}
    trainer = trainer_of(model, inputs, labels, tmp_path, given=given)
    with compress(model, 0.25, logits="full") as compression:
        trainer.train()
        keep = reports_keep(compression)
    with torch.no_grad():
        expected = recipes.loss_by_hand(family.model, inputs, keep, labels).item()
    assert logged(trainer) == pytest.approx([expected], rel=1e-3)


@pytest.mark.parametrize("kind", [Trainer, Seq2SeqTrainer])
def test_metrics(family, tmp_path, kind):
    """Predictions have the places of the labels."""
    model = recipes.fresh(family)
    inputs, _ = recipes.batch(family)
    labels, seen = recipes.text_labels(model, inputs), {}

    def metrics(prediction):
        seen["logits"], seen["labels"] = (
            torch.tensor(value) for value in (prediction.predictions, prediction.label_ids)
        )
        return {}

    settings = Seq2SeqTrainingArguments if kind is Seq2SeqTrainer else TrainingArguments
    trainer = trainer_of(model, inputs, labels, tmp_path, kind, settings, given={"compute_metrics": metrics})
    trainer.preprocess_logits_for_metrics = lambda logits, labels: logits[0] if isinstance(logits, tuple) else logits
    with compress(model, 0.25, logits="full") as compression:
        trainer.evaluate()
        keep = reports_keep(compression)
    with torch.no_grad():
        expected = recipes.full_logits_by_hand(family.model, inputs, keep)
    assert torch.equal(seen["labels"], labels)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(seen["logits"][real], expected[real], atol=2e-4, rtol=0)


def test_predict_with_generate(family, tmp_path):
    model = recipes.fresh(family)
    inputs = dict(family.inputs([f"u:{family.tag}{text};a:" for text in recipes.PROMPTS], recipes.images()))
    labels = recipes.text_labels(model, inputs)
    trainer = trainer_of(
        model, inputs, labels, tmp_path, Seq2SeqTrainer, Seq2SeqTrainingArguments,
        predict_with_generate=True, generation_max_length=inputs["input_ids"].shape[1] + 4,
    )  # fmt: skip
    with compress(model, 0.25, logits="full") as compression:
        predicted = torch.tensor(trainer.predict([0, 1]).predictions)
        assert compression.report.tokens_after < compression.report.tokens_before
        expected = model.generate(**inputs, max_length=inputs["input_ids"].shape[1] + 4, do_sample=False)
    assert torch.equal(predicted, expected)


def sft(model, tiny, folder, collator=None, **more):
    rows = [
        {"images": row["images"], "messages": row["prompt"] + row["completion"]}
        if not more.get("completion_only_loss")
        else row
        for row in recipes.examples(completion=recipes.CHOSEN)
    ]
    config = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=2, per_device_eval_batch_size=2, max_steps=1,
        logging_steps=1, max_length=None, max_grad_norm=1e9, learning_rate=1e-3, **{**recipes.QUIET, **more},
    )  # fmt: skip
    data = Dataset.from_list(rows)
    processor = copy.deepcopy(tiny.processor)
    return SFTTrainer(
        model, args=config, train_dataset=data, eval_dataset=data, processing_class=processor, data_collator=collator
    )


def test_sft_on_completions(family, tmp_path):
    """Labels on completions alone: the loss of embeddings cut by hand."""
    model = recipes.fresh(family)
    trainer = sft(model, family, tmp_path, completion_only_loss=True)
    inputs = dict(next(iter(trainer.get_train_dataloader())))
    labels = inputs.pop("labels")
    with compress(model, 0.25) as compression:
        trainer.train()
        keep = reports_keep(compression)
    with torch.no_grad():
        expected = recipes.loss_by_hand(family.model, inputs, keep, labels)
    assert logged(trainer) == pytest.approx([expected.item()], rel=1e-3)


class WithoutImages:
    """trl's collator, and no labels on image tokens (docs/training.md)."""

    def __init__(self, processor, image_token_id):
        self.collate, self.image_token_id = DataCollatorForVisionLanguageModeling(processor), image_token_id

    def __call__(self, rows):
        batch = self.collate(rows)
        batch["labels"][batch["input_ids"] == self.image_token_id] = -100
        return batch


def test_sft_on_whole_conversations(family, tmp_path):
    """trl's collator leaves labels on image tokens and its loss divides by their number: the library warns of it."""
    model = recipes.fresh(family)
    trainer = sft(model, family, tmp_path)
    with compress(model, 0.25), pytest.warns(UserWarning, match=f"globalcom2.*{ON_IMAGES}"):
        trainer.train()
    model = recipes.fresh(family)
    trainer = sft(model, family, tmp_path, WithoutImages(family.processor, model.config.image_token_id))
    inputs = dict(next(iter(trainer.get_train_dataloader())))
    labels = inputs.pop("labels")
    with compress(model, 0.25) as compression:
        trainer.train()
        keep = reports_keep(compression)
    with torch.no_grad():
        wanted = labels[:, 1:] != recipes.IGNORED
        sums = -recipes.logps_by_hand(family.model, inputs, keep, labels)[wanted].sum()
    # Trainer counts all labels, also those in the first column, which predict nothing
    counts = {int(wanted.sum()), int((labels != recipes.IGNORED).sum())}
    assert any(logged(trainer) == pytest.approx([sums.item() / count], rel=1e-3) for count in counts)


def test_sft_evaluates_with_metrics(llava_chat, tmp_path):
    """trl calls the model once more for logits, which have the caller's places."""
    model, seen = recipes.fresh(llava_chat), {}
    trainer = sft(model, llava_chat, tmp_path, completion_only_loss=True)
    trainer.compute_metrics = lambda prediction: seen.update(vars(prediction)) or {}
    with compress(model, 0.25, logits="full"):
        loss = trainer.evaluate()["eval_loss"]
    with compress(model, 0.25):
        trainer.compute_metrics = None
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)
    logits = seen["predictions"][0] if isinstance(seen["predictions"], tuple) else seen["predictions"]
    assert logits.shape[:2] == seen["label_ids"].shape


def precisions(model):
    """Records in which precision the tower, the projector and the language model work; (record, handles)."""
    record, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            note = lambda module, args, out, name=name: record.setdefault(name, set()).add(out.dtype)  # noqa: E731
            handles.append(module.register_forward_hook(note))
    return record, handles


@pytest.mark.parametrize("when", ["before", "inside"])
def test_bfloat16_trainer(family, tmp_path, when):
    """Every layer works in the precision that it has without compression."""
    inputs, _ = recipes.batch(family)
    plain = recipes.fresh(family)
    expected, _ = precisions(plain)
    labels = recipes.text_labels(plain, inputs)
    trainer_of(plain, inputs, labels, tmp_path, bf16=True).train()
    model = recipes.fresh(family)
    ours, _ = precisions(model)
    trainer = trainer_of(model, inputs, labels, tmp_path, bf16=True) if when == "before" else None
    with compress(model, 0.25) as compression:
        trainer = trainer or trainer_of(model, inputs, labels, tmp_path, bf16=True)
        trainer.train()
        assert compression.report.tokens_after < compression.report.tokens_before
    assert {torch.bfloat16} in expected.values()
    assert ours == expected
    assert torch.isfinite(torch.tensor(logged(trainer))).all()


@pytest.mark.parametrize("when", ["before", "inside"])
def test_accelerate_mixed_precision(family, when):
    inputs, _ = recipes.batch(family)
    labels = recipes.text_labels(family.model, inputs)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    plain = accelerator.prepare(recipes.fresh(family))
    expected, _ = precisions(plain)
    plain(**inputs, labels=labels).loss.backward()
    model = recipes.fresh(family)
    ours, _ = precisions(model)
    if when == "before":
        model = accelerator.prepare(model)
    with compress(model, 0.25) as compression:
        if when == "inside":
            model = accelerator.prepare(model)
        out = model(**inputs, labels=labels)
        out.loss.backward()
        assert compression.report.tokens_after < compression.report.tokens_before
    assert out.logits.dtype == torch.float32
    assert ours == expected
    after = model(**inputs)
    assert after.logits.shape[1] == inputs["input_ids"].shape[1]
    assert after.logits.dtype == torch.float32
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    assert "generate" not in vars(model)


def test_gradient_checkpointing(llava_chat, tmp_path):
    """Recomputed layers give the same step."""
    inputs, _ = recipes.batch(llava_chat)
    labels, norms = recipes.text_labels(llava_chat.model, inputs), []
    name = (
        "activation_checkpointing"
        if hasattr(TrainingArguments, "activation_checkpointing")
        else "gradient_checkpointing"
    )
    for on in (False, True):
        model = recipes.fresh(llava_chat)
        trainer = trainer_of(model, inputs, labels, tmp_path, **{name: on})
        with compress(model, 0.25):
            trainer.train()
        norms.append(logged(trainer, "grad_norm") + logged(trainer))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
