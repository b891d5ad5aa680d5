"""Flags of `vllm serve` on their way through `globalcom2 serve`: none is lost in whichever spelling vLLM takes it."""

import json

import pytest

from globalcom2 import CompressionConfig, InputError
from globalcom2.cli import main
from globalcom2.integrations.vllm import serving
from globalcom2.integrations.vllm.flags import read_flags
from globalcom2.integrations.vllm.options import METHOD, PER_REQUEST, RETENTION

OURS = {RETENTION: 0.1, METHOD: "globalcom2", PER_REQUEST: False}


def served(*flags: str) -> tuple[dict, list[str]]:
    """The overrides of the command for the mini model, and the rest of it."""
    made = serving.command("mini", CompressionConfig(0.1), None, False, list(flags))
    assert sum(part.startswith("--hf") for part in made) == 1  # vLLM follows the last spelling alone
    place = made.index("--hf-overrides")
    return json.loads(made[place + 1]), made[:place] + made[place + 2 :]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--hf-overrides", '{"a": 1}'], {"a": 1}),
        (['--hf_overrides={"a": 1}'], {"a": 1}),
        (["--hf-override", '{"a": 1}'], {"a": 1}),
        (['--hf-o={"a": 1}'], {"a": 1}),
        (["--hf-overrides.a", "1"], {"a": 1}),
        (["--hf_overrides.a_b=text"], {"a_b": "text"}),
        (["--hf-o.a.b", "1k", "--hf-over.a.c=2M"], {"a": {"b": 1000, "c": 2 << 20}}),
        (["--hf-overrides.a+", "x,y", "--hf-overrides.a+=z"], {"a": ["x", "y", "z"]}),
        (["--hf-overrides", '{"a": {"b": 1}}', "--hf-overrides.a.c", "2"], {"a": {"b": 1, "c": 2}}),
        (["--hf-overrides", '{"a": 1}', "--hf-o", '{"b": 2}'], {"a": 1, "b": 2}),
        (["--hf-overrides", '{"a": 1}', "--hf-overrides", '{"a": 2}'], {"a": 2}),
    ],
)
def test_overrides_in_every_spelling(flags, told):
    found, rest = served("--port", "1", *flags, "--seed", "2")
    assert found == {**told, **OURS}
    assert rest[-4:] == ["--port", "1", "--seed", "2"]


def test_flags_that_are_like_overrides_stay():
    flags = ["--hf-token", "x", "--hf-config-path=y", "--hf", "z", "-tp", "2"]
    assert read_flags(flags) == (flags, {}, [])


def test_a_file_of_flags_loses_nothing(tmp_path):
    file = tmp_path / "vllm.yaml"
    file.write_text("hf_overrides:\n  a: {b: 1}\n  c: 2\nmax-model-len: 4096\ndtype: bfloat16\nenforce-eager: false\n")
    found, rest = served("--hf-overrides.a.d", "3", "--config", str(file), "--hf-overrides", '{"c": 4}')
    assert found == {"a": {"b": 1, "d": 3}, "c": 4, **OURS}
    # vLLM lets the command line win over a file, so nothing of the mini model's own may stand there as well.
    assert not {"--max-model-len", "--dtype", "--enforce-eager"} & set(rest)
    assert rest[-2:] == ["--config", str(file)]
    assert "--served-model-name" in rest
    file.write_text("hf-overrides: '{\"a\": 1}'\n")
    assert served("--hf-overrides", '{"a": 2}', "--config", str(file))[0] == {"a": 2, **OURS}  # before the file as well
    found, rest = served("--config", str(file))
    assert found == {"a": 1, **OURS}
    assert "--dtype" in rest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf-overrides.a: 1", "must have overrides as a mapping under hf-overrides, got hf-overrides.a"),
        ("hf-overrides: 1", "hf-overrides in .*vllm.yaml must be a JSON object, got 1"),
        ("hf-overrides: {globalcom2_retention: 0.5}", "globalcom2_retention belongs into the flags"),
    ],
)
def test_a_file_whose_overrides_would_be_lost(text, message, tmp_path):
    file = tmp_path / "vllm.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        served("--config", str(file))


@pytest.mark.parametrize("text", [None, "a: [", "- a", "just text"])
def test_a_file_that_vllm_refuses_is_left_to_it(text, tmp_path):
    file = tmp_path / "vllm.yaml"
    if text is not None:
        file.write_text(text)
    assert served("--config", str(file)) == (OURS, served()[1] + ["--config", str(file)])


@pytest.mark.parametrize(
    ("flag", "ours"),
    [("--max_model_len=9", "--max-model-len"), ("--max-model-l", "--max-model-len"), ("--dty", "--dtype")],
)
def test_the_mini_models_flags_in_every_spelling(flag, ours):
    assert ours not in served(flag, "9")[1]
    assert ours in served("--max-num-seqs", "9", "--", "-d")[1]


def test_flags_before_the_model(capsys):
    for arguments in (["--max-model-len", "4096", "mini"], ["--hf-overrides.a", "1", "mini"]):
        with pytest.raises(SystemExit) as stopped:
            main(["serve", *arguments, "--dry-run"])
        assert stopped.value.code == 2
        assert "MODEL must come before the flags" in capsys.readouterr().err


def test_the_server_looks_at_names_in_requests():
    flag, names = "--middleware", serving.MIDDLEWARE
    rest = served(flag, "some.other.Thing")[1]
    assert [rest[i + 1] for i, part in enumerate(rest) if part == flag] == [*names, "some.other.Thing"]
    assert served(flag, names[0])[1].count(names[0]) == 1
    module, _, kind = names[0].rpartition(".")
    assert callable(getattr(__import__(module, fromlist=[kind]), kind))


# Before it starts


@pytest.fixture
def installed(monkeypatch):
    def install(version: str) -> None:
        monkeypatch.setattr(serving, "installed_version", lambda: version)

    for name in ("VLLM_PLUGINS", "GLOBALCOM2_ANY_VLLM"):
        monkeypatch.delenv(name, raising=False)
    return install


def test_an_untested_vllm_if_one_insists(installed, monkeypatch):
    installed("0.99.0")
    with pytest.raises(TypeError, match=r"got 0\.99\.0.*GLOBALCOM2_ANY_VLLM=1"):
        serving.check_installed()
    monkeypatch.setenv("GLOBALCOM2_ANY_VLLM", "1")
    serving.check_installed()


def test_a_vllm_that_loads_no_plugin_of_ours(installed, monkeypatch):
    installed("0.32.0")
    for allowed in ("", "other", "other, globalcom2"):  # vLLM does not take blanks away
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
        with pytest.raises(InputError, match="VLLM_PLUGINS must have globalcom2 in it"):
            serving.check_installed()
    monkeypatch.setenv("VLLM_PLUGINS", "other,globalcom2")
    serving.check_installed()
    monkeypatch.setattr(serving, "entry_points", lambda group: [])
    with pytest.raises(InputError, match="globalcom2 must be installed for vLLM to find its plugin"):
        serving.check_installed()
