"""Questions, evaluations, benches and commands about images that keep their resolution."""

import copy
import json
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from command import call
from families.native import NATIVE, paddleocr_vl
from families.native_more import MORE
from globalcom2 import InputError, UnsupportedModelError, compress
from globalcom2.adapters.families import get_family, list_models, load_adapter
from globalcom2.adapters.tables import native
from globalcom2.hf.loading import load_model
from globalcom2.lab import bench
from globalcom2.lab.analysis import analyze_views
from globalcom2.lab.answers import answer_questions
from globalcom2.lab.chat import chat_prompt
from globalcom2.lab.comparison import compare
from globalcom2.lab.random_inputs import random_inputs
from globalcom2.lab.settings import Setting
from globalcom2.lab.shared_tower import shared_tower
from native_cases import case_of, left_clean
from tiny import picture

QUESTIONS = [["is it?", "what number is that?"], ["where is it then?", "who?"]]


def alone(made, image, question):
    """The answer of a call of its own."""
    inputs = made.processor(text=[chat_prompt(made.processor, question)], images=[[image]], return_tensors="pt")
    out = made.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return made.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe", "kimi_k25", "gemma4"])
@pytest.mark.parametrize("ratio", [None, 0.3])
def test_questions_about_one_image_are_answered_as_if_asked_alone(name, ratio):
    """Two images, questions of unlike lengths, with all tokens or fewer: the same texts, and the same logits."""
    made, seen = {**NATIVE, **MORE}[name](), []
    hook = made.model.lm_head.register_forward_hook(lambda _module, _given, logits: seen.append(logits[:, -1]))
    images = [picture(96, 120, 1), picture(96, 120, 5)]
    with nullcontext() if ratio is None else compress(made.model, ratio):
        found = answer_questions(made.model, made.processor, images, QUESTIONS, 4)
        together = torch.stack(seen[1:]).view(2, 4, 2, -1).permute(2, 0, 1, 3)  # the first is that of the images alone
        seen.clear()
        apart = [[alone(made, image, q) for q in asked] for image, asked in zip(images, QUESTIONS, strict=True)]
    hook.remove()
    assert found.texts == apart
    torch.testing.assert_close(together.flatten(0, 2), torch.cat(seen), atol=1e-3, rtol=0)
    if name != "gemma4":  # which resizes
        assert found.placeholders == [12 * 15] * 2


def test_a_continued_conversation_may_bring_the_kinds_of_all_its_tokens():
    """Gemma 4 makes masks of them: the logits are those of one call."""
    made = MORE["gemma4"]()
    inputs = dict(made.inputs([f"a {made.tag} what is that?"], [picture(96, 120, 1)]))
    length = inputs["input_ids"].shape[1]
    once = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    long = [name for name, x in inputs.items() if x.shape == (1, length)]
    with compress(made.model, 0.3):
        whole = made.model.generate(**inputs, **once)
        begin = {name: x[:, :-6] if name in long else x for name, x in inputs.items()}
        cache = made.model.generate(**begin, **once).past_key_values
        continued = made.model.generate(**{name: inputs[name] for name in long}, **once, past_key_values=cache)
    assert "mm_token_type_ids" in long
    torch.testing.assert_close(continued.logits[0], whole.logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "mistral3"])
def test_a_tower_that_remembers_changes_no_bit(name):
    """Settings after one another on the same image, guides with a pass of their own in between, and another image."""
    with left_clean(case_of(name)) as case:
        once = {"max_new_tokens": 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        settings = [None, {}, {"guide": "thumbnail"}, {"method": "uniform"}, None]
        calls = [(case.rows[0], own) for own in settings] + [(case.rows[3], own) for own in settings[:2]]

        def logits():
            for inputs, own in calls:
                with nullcontext() if own is None else compress(case.model, 0.2, **own):
                    yield torch.stack(case.model.generate(**inputs, **once).logits)

        plain = list(logits())
        with shared_tower(case.model) as shared:
            remembered = list(logits())
            assert shared.saved > 0
        assert all(map(torch.equal, plain, remembered))


def test_a_tower_without_attention_to_read_is_not_shared():
    made = MORE["gemma4_unified"]()
    with shared_tower(made.model) as shared:
        made.model.generate(**made.inputs([f"a {made.tag} b"], [picture(96, 120, 1)]), max_new_tokens=1)
    assert shared.saved == 0


def test_comparisons_count_the_pass_of_a_guide():
    with left_clean(case_of("qwen2_5_vl")) as case:
        made, image = case.tiny, picture(96, 120, 1)
        settings = [
            Setting("globalcom2", 0.2),
            Setting("globalcom2", 0.2, {"guide": "thumbnail"}),
            Setting("uniform", 0.2),
        ]
        found = compare(made.model, made.processor, image, "what?", settings, max_new_tokens=4)
        assert found.full.answer == alone(made, image, "what?")
        pooled, thumbnail, uniform = found.runs
        with compress(made.model, 0.2):
            assert pooled.answer == alone(made, image, "what?")
        assert [run.visual_tokens for run in found.runs] == [36] * 3
        assert found.full.tower_flops == pooled.tower_flops == uniform.tower_flops < thumbnail.tower_flops
        assert thumbnail.tower_flops < 1.3 * pooled.tower_flops  # a ninth of the tokens


def test_benches_run_and_refuse_what_they_cannot():
    with left_clean(case_of("qwen2_vl")) as case:
        plan = bench.Plan((96, 120), text_tokens=12, new_tokens=2, rounds=1)
        settings = bench.settings_of(["globalcom2"], [0.25, *bench.limit_ratios(case.model, plan, [10])], [2])
        rows = bench.measure(case.model, settings, plan)
        whole = rows[0]["visual_tokens"]
        assert whole >= 180  # as published limits have it, a small image is read at a larger size
        assert [row["visual_tokens"] for row in rows[1:]] == [int(0.25 * whole + 0.5), 10]
        assert all(row["tower_seconds"] > 0 and row["predicted_speedup"] >= 1 for row in rows)
        assert bench.default_image(case.model.config) == (28 * 8, 28 * 8)
        with pytest.raises(UnsupportedModelError, match="--compare must be left out for qwen2_vl"):
            bench.check_comparable(case.model.config)
        with pytest.raises(UnsupportedModelError, match="must be of a family whose images have a thumbnail"):
            analyze_views(case.model, case.tiny.processor, [])


@pytest.mark.parametrize("name", ["glm4v", "kimi_k25", "ernie4_5_vl_moe", "mistral3"])
def test_random_inputs_are_read_as_those_of_a_processor(name):
    with left_clean(case_of(name)) as case, compress(case.model, 0.5) as compression:
        inputs = random_inputs(case.model, (96, 120), 12, 2)
        case.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        assert set(inputs) == set(case.rows[0])
        assert inputs["pixel_values"].shape[1:-2] == case.rows[0]["pixel_values"].shape[1:-2]
        visual = int((inputs["input_ids"][0] == case.model.config.image_token_id).sum())
        assert [entry.tokens_before for entry in compression.report] == [visual] * 2


def test_a_missing_library_is_told_before_weights_are_read(tmp_path, monkeypatch):
    case_of("qwen2_5_vl").model.config.save_pretrained(tmp_path)

    def missing(*args, **options):
        raise ImportError(
            "\nQwen2VLVideoProcessor requires the Torchvision library but it was not found. See https://x."
        )

    monkeypatch.setattr(AutoProcessor, "from_pretrained", missing)
    monkeypatch.setattr(
        AutoModelForImageTextToText, "from_pretrained", lambda *a, **k: pytest.fail("weights were read")
    )
    with pytest.raises(
        InputError, match=r"requires the Torchvision library but it was not found\. Install what is missing"
    ):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", list_models())
def test_tables_tell_native_families_from_others(name):
    assert native(get_family(name)) == load_adapter(name).native


def test_ask_draws_what_a_native_model_kept(tmp_path, capsys):
    """One family whose published processor needs no torchvision, saved and loaded as any checkpoint is."""
    made = paddleocr_vl()
    made.model.generation_config = copy.deepcopy(made.model.generation_config)
    made.model.save_pretrained(tmp_path / "model")
    made.processor.save_pretrained(tmp_path / "model")
    picture(96, 120, 1).save(tmp_path / "a.png")
    code, out, _err = call(
        capsys, "ask", str(tmp_path / "a.png"), "what?", "--model", str(tmp_path / "model"), "--method",
        "globalcom2,globalcom2:guide=thumbnail", "--retention", "0.2", "--max-new-tokens", "2",
        "--picture", str(tmp_path / "kept.png"), "--html", str(tmp_path / "kept.html"), "--json",
    )  # fmt: skip
    assert code == 0
    runs = json.loads(out)["runs"]
    assert [run["compressed"]["visual_tokens"] for run in runs] == [36, 36]
    assert [run["picture"] for run in runs] == [str(tmp_path / f"kept-{n}.png") for n in (1, 2)]
    assert "commands, is not read" in (tmp_path / "kept.html").read_text()
    code, out, _err = call(
        capsys, "ask", str(tmp_path / "a.png"), "what?", "--model", str(tmp_path / "model"), "--max-new-tokens", "2"
    )
    assert code == 0
    assert "Kept per window: " in out
