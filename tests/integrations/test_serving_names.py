"""Names that were meant for the plugin and would be ignored: in overrides, in the environment, in requests."""

import asyncio
import json
import logging
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest

from globalcom2 import InputError, UnsupportedModelError
from globalcom2.integrations.vllm import gate, options
from globalcom2.integrations.vllm.middleware import RefuseWrongNames
from globalcom2.integrations.vllm.names import meant
from globalcom2.integrations.vllm.options import FLOOR, LIMIT, METHOD, PER_REQUEST, RETENTION, Options, check_request

RIGHT = {
    "globalcom2_retenton": RETENTION,
    "globalcom2-retention": RETENTION,
    "GlobalCom2_Retention": RETENTION,
    "globalcom_retention": RETENTION,
    "gloablcom2_retention": RETENTION,
    "globalcom2_retention_ratio": RETENTION,
    "retention": RETENTION,
    "retention_ratio": RETENTION,
    "max_visual_tokens": LIMIT,
    "globalcom2_flor": FLOOR,
    "globalcom2_methods": METHOD,
}
OTHERS = (
    "size",
    "crop_to_patches",
    "rope_theta",
    "detention_center",
    "max_pixels",
    "attention",
    "method",
    "floor",
    "visual_tokens",
)


def test_what_was_meant():
    ours = [RETENTION, FLOOR, METHOD, LIMIT]
    assert {name: meant(name, ours) for name in RIGHT} == RIGHT
    assert [meant(name, ours) for name in OTHERS] == [None] * len(OTHERS)
    assert meant("globalcom2_alpha", ours) == ""


# Engines


def checked(model, reason=None):
    gate.check(model, ["LlavaNextForConditionalGeneration"], reason)


class Config(SimpleNamespace):
    """A model's configuration: overrides become its attributes."""


def model(
    architecture="LlavaNextForConditionalGeneration", *, overrides=None, multimodal=True, runner="generate", **own
):
    overrides = overrides or {}
    return SimpleNamespace(
        runner_type=runner,
        hf_config=Config(**{**own, **overrides}),
        hf_overrides=overrides,
        architecture=architecture,
        is_multimodal_model=multimodal,
        multimodal_config=SimpleNamespace(mm_processor_kwargs=None) if multimodal else None,
    )


@pytest.fixture
def registry(monkeypatch):
    """A stand-in for vLLM with one model of ours, one of its own, and one of another package under a name of ours."""
    fake = ModuleType("vllm")
    fake.ModelRegistry = SimpleNamespace(
        models={
            "LlavaNextForConditionalGeneration": SimpleNamespace(module_name="globalcom2.integrations.vllm.anyres"),
            "InternVLChatModel": SimpleNamespace(model_cls=SimpleNamespace(__module__="someone.elses")),
            "Llama4ForConditionalGeneration": SimpleNamespace(module_name="vllm.model_executor.models.mllama4"),
        }
    )
    monkeypatch.setitem(sys.modules, "vllm", fake)
    for name in ("GLOBALCOM2_RETENTION", "VLLM_USE_RUST_FRONTEND"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["Llama4ForConditionalGeneration", "InternVLChatModel", "TransformersMultiModal"])
def test_an_engine_that_would_compress_nothing_does_not_start(name, registry, monkeypatch):
    tenth, asks = {RETENTION: 0.1}, {PER_REQUEST: True}
    checked(model(overrides=tenth))
    for asked in (
        model(name, overrides=tenth),
        model(name, **tenth),
        model(name, overrides={LIMIT: 64}),
        model(name, overrides=asks),
    ):
        with pytest.raises(UnsupportedModelError, match=f"got {name}: vLLM would serve it with all of its tokens"):
            checked(asked)
    checked(model(name))
    checked(model(name, overrides={RETENTION: 1}))
    checked(model(name, overrides=tenth, runner="draft"))
    monkeypatch.setenv("GLOBALCOM2_RETENTION", "0.1")
    with pytest.raises(UnsupportedModelError, match=f"got {name}"):
        checked(model(name))
    for overrides in ({}, {"rope_theta": 1}):  # nothing to see, nothing to compress
        checked(model(name, multimodal=False, overrides=overrides))
    with pytest.raises(UnsupportedModelError, match=f"got {name}"):
        checked(model(name, multimodal=False, overrides=tenth))


def test_an_untested_version_does_not_start_where_it_is_asked_to_compress(registry):
    checked(model(), "vllm must be another.")
    with pytest.raises(UnsupportedModelError, match=r"compress nothing here: vllm must be another\. Leave"):
        checked(model(overrides={RETENTION: 0.1}), "vllm must be another.")


def test_a_front_end_that_runs_no_plugin(registry, monkeypatch):
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    checked(model())
    with pytest.raises(UnsupportedModelError, match="VLLM_USE_RUST_FRONTEND must be off"):
        checked(model(overrides={RETENTION: 0.1}))


@pytest.mark.parametrize("name", RIGHT)
def test_a_wrong_name_in_overrides(name, registry):
    with pytest.raises(InputError, match=f"hf_overrides must .* got '{name}', .* Did you mean '{RIGHT[name]}'"):
        checked(model(overrides={name: 0.1}))


def test_wrong_names_elsewhere_in_an_engine(registry):
    with pytest.raises(
        InputError, match=f"text_config of hf_overrides .* {RETENTION} belongs into hf_overrides itself"
    ):
        checked(model(overrides={"text_config": {RETENTION: 0.1}}))
    with pytest.raises(InputError, match=f"the model's configuration .* Did you mean '{RETENTION}'"):
        checked(model(globalcom2_retenton=0.1))
    asked = model()
    asked.multimodal_config.mm_processor_kwargs = {"retention": 0.1}
    with pytest.raises(InputError, match=f"mm_processor_kwargs .* Did you mean '{RETENTION}'"):
        checked(asked)
    checked(model(overrides={name: {"deep": 1} for name in OTHERS}))


def test_a_misspelt_variable(monkeypatch):
    # A cluster with a service of this name sets such variables for all that run beside it.
    for name in ("GLOBALCOM2_PORT", "GLOBALCOM2_SERVICE_HOST", "GLOBALCOM2_PORT_8000_TCP_ADDR", "GLOBALCOM2_FLOOR"):
        monkeypatch.setenv(name, "0.1")
    gate.check_environment(["GLOBALCOM2_ANY_VLLM"])
    monkeypatch.setenv("GLOBALCOM2_RETENTON", "0.1")
    with pytest.raises(InputError, match=r"the environment .* Did you mean 'GLOBALCOM2_RETENTION'"):
        gate.check_environment(["GLOBALCOM2_ANY_VLLM"])


def test_one_line_in_the_log_says_what_an_engine_does(caplog):
    engine = Options.of(SimpleNamespace(globalcom2_retention=0.25, globalcom2_floor=0.1, globalcom2_method="uniform"))
    with caplog.at_level(logging.INFO, "vllm"):
        options.announce(engine, Config)
    (record,) = caplog.records
    said = record.getMessage()
    assert record.name.startswith("vllm.")  # others have no handler in a server
    assert all(part in said for part in ("ratio 0.25", "floor 0.1", "method uniform", f"{__name__}.Config"))
    assert "at most" not in said
    with caplog.at_level(logging.INFO, "vllm"):
        options.announce(Options(0.25, 0.1, "uniform", limit=64), Config)
    assert "at most 64 tokens" in caplog.records[-1].getMessage()


def test_the_floor_is_told_once_for_a_ratio(caplog):
    options._warn_of_floor.cache_clear()
    engine = Options.of(SimpleNamespace(globalcom2_retention=0.25, globalcom2_floor=0.1))
    for ratio in (0.05, 0.05, 0.06, 0.2):
        engine.ratio({RETENTION: ratio})
    assert [record.name for record in caplog.records] == ["vllm.globalcom2"] * 2
    assert ["0.05" in record.getMessage() for record in caplog.records] == [True, False]


# Requests


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (10**400, "must be in .0, 1., got a whole number beyond"),
        (-(10**4000), "must be in .0, 1., got a whole number beyond"),
        ("0.2_5", "must be a number in .0, 1., got '0.2_5'"),
        ("٠.٢", "must be a number"),
        ("nan", "must be a number"),
        ("1" * 500, "must be in"),
        ("x" * 10**6, "must be a number in .0, 1., got 'x{40}'"),
    ],
)
def test_odd_ratios(value, message):
    engine = Options.of(SimpleNamespace(globalcom2_retention=0.5, globalcom2_floor=0.1))
    with pytest.raises(InputError, match=f"{RETENTION} {message}"):
        engine.ratio({RETENTION: value})
    assert [engine.ratio({RETENTION: text}) for text in ("0.25", " .25 ", "2.5e-1")] == [0.25] * 3


def test_wrong_names_in_a_request():
    for name, right in RIGHT.items():
        cure = "belongs into hf_overrides of the engine" if right in (FLOOR, METHOD) else f"Did you mean '{right}'"
        with pytest.raises(InputError, match=f"got '{name}', .*{cure}"):
            check_request({name: 0.1})
        with pytest.raises(InputError, match=f"got '{name}'"):  # an engine looks without the server's help
            Options.of(SimpleNamespace()).ratio({name: 0.1})
    with pytest.raises(InputError, match="globalcom2_floor belongs into hf_overrides of the engine"):
        check_request({FLOOR: 0.1})
    check_request({RETENTION: 0.1, LIMIT: 9, **dict.fromkeys(OTHERS, 1)})


class Refused(Exception):
    """In the place of the class with which a server answers."""


@pytest.fixture
def sent(monkeypatch):
    """Sends a body in pieces through the middleware and returns what arrives, or raises `Refused`."""
    made = ModuleType("fastapi")
    made.HTTPException = Refused
    monkeypatch.setitem(sys.modules, "fastapi", made)

    def send(body, pieces=1, reads=True, **scope) -> list[bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        step = -(-len(data) // pieces)
        cut = [data[i : i + step] for i in range(0, len(data), step)]
        left = [{"type": "http.request", "body": part, "more_body": part is not cut[-1]} for part in cut]
        arrived = []

        async def receive():
            return left.pop(0)

        async def app(scope, receive, send):
            while reads and left:
                arrived.append((await receive())["body"])

        asyncio.run(RefuseWrongNames(app)({"type": "http", "method": "POST", **scope}, receive, None))
        assert not reads or b"".join(arrived) == data
        return arrived

    return send


def chat(*parts, **more):
    return {
        "model": "mini",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hm"}, *parts]}],
        **more,
    }


WRONG = [
    (chat(globalcom2_retention=0.1), f"{RETENTION} belongs into mm_processor_kwargs"),
    (chat(retention_ratio=0.1), f"got 'retention_ratio'.*{RETENTION} belongs into mm_processor_kwargs"),
    (chat(extra_body={"mm_processor_kwargs": {RETENTION: 0.1}}), "extra_body, which only OpenAI's client unpacks"),
    (chat(mm_processor_kwargs={RETENTION: 25}), "Did you mean 0.25"),
    (chat(mm_processor_kwargs={"retention": 0.1}), f"Did you mean '{RETENTION}'"),
    (chat(mm_processor_kwargs={LIMIT: -1}), f"{LIMIT} must be"),
    (chat({"type": "image_url", "image_url": {"url": "u", RETENTION: 1}}), "a part of a message must"),
    (chat({"type": "image_url", "image_url": {"url": "u"}, LIMIT: 1}), "a part of a message must"),
    ({"prompt": "hm", "GlobalCom2-retention": 1}, "got 'GlobalCom2-retention'"),
]


@pytest.mark.parametrize(("body", "message"), WRONG)
def test_a_server_refuses_what_it_would_ignore(body, message, sent):
    for pieces in (1, 7):
        with pytest.raises(Refused) as refused:
            sent(body, pieces)
        assert refused.value.args[0] == 400
        assert re.search(message, str(refused.value.args[1]))
    assert sent(body, reads=False) == []  # a server that does not read it, as without a key, hears nothing of it


RIGHT_BODIES = [
    chat(),
    chat(mm_processor_kwargs={RETENTION: 0.25}),
    chat(mm_processor_kwargs={"size": 3}, temperature=0, messages_of="globalcom2"),
    chat({"type": "text", "text": f"What is {RETENTION}? And retention_ratio?"}),
    chat(tools=[{"function": {"parameters": {"properties": {"retention": {"type": "number"}}}}}]),
    {"messages": "globalcom2", "mm_processor_kwargs": [RETENTION]},
    [{RETENTION: 1}],
    b"globalcom2 is no JSON",
    b'{"globalcom2": ',
    b"\xff\xfe retention",
]


@pytest.mark.parametrize("body", RIGHT_BODIES)
def test_a_server_passes_on_the_rest(body, sent):
    for pieces in (1, 5):
        assert sent(body, pieces)


def test_a_server_looks_at_nothing_but_what_is_posted(sent):
    wrong = WRONG[0][0]
    assert sent(wrong, method="PUT")
    assert sent(wrong, type="websocket")
    with pytest.raises(Refused):
        sent(wrong)
