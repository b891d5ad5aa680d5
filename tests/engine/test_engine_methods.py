"""Methods that read features or a score of their own, and rules for newlines: the engine does what transformers does."""

import contextlib
from dataclasses import replace

import checkpoints
import engines
import pytest
import torch
import torch.nn.functional as F

import toys
from globalcom2 import CompressionConfig, Ranking, compress, load_mini
from globalcom2.lab.dataset import load_examples
from globalcom2.mini import EVALUATION_SET, FOLDER
from tiny import picture

seen = []


def far_from_the_thumbnail(views, retention_ratio):
    """One order over all crops, by how little a token resembles the thumbnail's mean; notes what it was given."""
    seen.append(views)
    mean = views.features[:, 0].float().mean(1)[:, None, None]
    return Ranking(views.thumbnail_scores, -F.cosine_similarity(views.features[:, 1:].float(), mean, dim=-1))


def far_from_the_crops(views, retention_ratio):
    """The same by the crops' own mean."""
    seen.append(views)
    mean = views.crop_features.float().mean((1, 2), keepdim=True)
    return Ranking(views.thumbnail_scores, -F.cosine_similarity(views.crop_features.float(), mean, dim=-1))


def by_its_score(views, retention_ratio):
    """What it is defined on decides alone."""
    seen.append(views)
    return Ranking(views.thumbnail_scores, views.scores)


TOYS = {
    "features": (far_from_the_thumbnail, {"reads": ("features",)}),
    "crop features": (far_from_the_crops, {"reads": ("crop_features",)}),
    **{score: (by_its_score, {"score": score}) for score in ("attention", "mean_query", "received", "similarity")},
}
READ = [
    *(
        (family, "features")
        for family in ("llava_next", "llava_next_two_layers", "llava_onevision", "idefics3", "internvl")
    ),
    ("llava_onevision", "crop features"),
]
SCORED = [
    ("llava_next", "attention"),
    ("llava_next", "similarity"),
    ("internvl", "mean_query"),
    ("internvl", "received"),
]
SIZES = ((168, 168), (60, 200), (250, 200))


@pytest.fixture
def toy(monkeypatch):
    """Registers one of `TOYS` as the method "toy"; gives what it was given."""

    def of(what):
        function, wants = TOYS[what]
        toys.register(monkeypatch, function, **wants)
        seen.clear()
        return seen

    return of


@contextlib.contextmanager
def video_off(family, saved, **overrides):
    video = {"video": 0} if family in ("llava_onevision", "internvl") else {}
    with engines.running(saved, {"limit_mm_per_prompt": {"image": 4, **video}}, **overrides) as engine:
        yield engine


@pytest.mark.parametrize(("family", "what"), READ + SCORED)
def test_a_method_is_given_what_transformers_gives_it(family, what, folder, toy):
    from transformers import AutoProcessor

    given, saved = toy(what), folder(family)
    made = checkpoints.tiny(family)._replace(processor=AutoProcessor.from_pretrained(saved))
    images = [picture(*size, seed=number) for number, size in enumerate(SIZES)]
    with video_off(family, saved, globalcom2_retention=0.3, globalcom2_method="toy") as engine:
        given.clear()
        served = engines.answers(engine, [engines.request(f"a {made.tag} b", [image], None) for image in images], 1)
        in_engine = list(given)
    given.clear()
    lengths, image_id = [], made.model.config.image_token_id
    for image in images:
        inputs = made.inputs([f"a {made.tag} b"], [image])
        with torch.no_grad(), compress(made.model, 0.3, "toy") as compression:
            made.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        ids = inputs["input_ids"]
        lengths.append(ids.shape[1] - int((ids == image_id).sum()) + compression.report.tokens_after)
    for own, other in paired(in_engine, given):
        assert own.score_type == other.score_type
        for name in ("scores", "thumbnail_scores", "features", "crop_features"):
            mine, theirs = getattr(own, name), getattr(other, name)
            assert (mine is None) == (theirs is None), name
            if mine is not None:
                torch.testing.assert_close(mine.float(), theirs.float(), atol=1e-4, rtol=1e-3)
    assert [len(output.prompt_token_ids) for output in served] == lengths


def paired(ours, theirs):
    """Views of the same picture, one by one: an engine may take several pictures at once, and in any order."""
    # compress() tries a method with zeros first.
    ours, theirs = ([one for views in many if views.scores.any() for one in apart(views)] for many in (ours, theirs))
    assert len(ours) == len(theirs) == len(SIZES)
    return zip(
        *(sorted(many, key=lambda views: (views.grid, views.valid_count)) for many in (ours, theirs)), strict=True
    )


def apart(views):
    names = ("scores", "thumbnail_scores", "features", "crop_features")
    for i in range(len(views.scores)):
        yield replace(views, **{n: None if getattr(views, n) is None else getattr(views, n)[i : i + 1] for n in names})


# The mini model: answers

METHODS = (
    "globalcom2:allocation=joint,newlines=from_2",
    "globalcom2:newlines=none,thumbnail_weight=2.0,score=similarity",
    "divprune:newlines=none",
    "vidcom2:newlines=all",
    "fastervlm",
    "scope:newlines=from_3",
)


@pytest.fixture(scope="module")
def asked():
    pictures = load_examples(EVALUATION_SET, first=12)
    return [(f"<s><user><image>{p.questions[0].text}<assistant>", p.image) for p in pictures]


@pytest.mark.parametrize("text", METHODS)
def test_answers_are_those_of_transformers(text, asked):
    config = CompressionConfig(0.1, text)
    with engines.running(FOLDER, **config.vllm_overrides()) as engine:
        served = engines.answers(engine, [engines.request(prompt, [image]) for prompt, image in asked], tokens=4)
    model, processor = load_mini()
    image_id, differs = model.config.image_token_id, 0
    for (prompt, image), answer in zip(asked, served, strict=True):
        inputs = processor(text=prompt, images=image, return_tensors="pt")
        with torch.no_grad(), compress(model, config=config) as compression:
            made = model.generate(
                **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        assert list(answer.prompt_token_ids).count(image_id) == compression.report.tokens_after
        assert engines.ids(answer) == made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        best = made.logits[0][0].log_softmax(-1).topk(5)
        got = torch.tensor([engines.best(answer)[0][token] for token in best.indices.tolist()])
        torch.testing.assert_close(got, best.values, atol=2e-3, rtol=2e-3)
        with torch.no_grad(), compress(model, 0.1):
            plain = model(**inputs).logits[0, -1].log_softmax(-1)[best.indices]
        differs += not torch.allclose(best.values, plain, atol=2e-2)
    assert differs > 3  # what the text says is felt


def test_what_an_engine_cannot_follow_is_told_before_it_starts(folder):
    for text, message in (
        ("fastervlm", "'fastervlm' cannot be served: score must be one of similarity"),
        ("visionzip", "got 'visionzip', which reads attention keys and merges"),
        ("globalcom2:allocation=attention", "needs a thumbnail and scores before the softmax"),
        ("globalcom2:positions=original", "positions must be left out"),
    ):
        with (
            pytest.raises(Exception, match=message),
            video_off("llava_onevision", folder("llava_onevision"), globalcom2_method=text),
        ):
            pass
