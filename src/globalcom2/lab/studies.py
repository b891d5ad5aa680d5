"""What an evaluation tries unless it is told: every method there is, each on its own terms too."""

from __future__ import annotations

from typing import Any

from globalcom2.core.methods import get_method, list_methods
from globalcom2.core.presets import PRESET_METHOD
from globalcom2.errors import GlobalCom2Error
from globalcom2.hf.inside import INSIDE
from globalcom2.lab.dataset import Example
from globalcom2.lab.evals import EvalSetting, answer_in
from globalcom2.lab.labels import FULL


def study_methods() -> list[str]:
    """All methods as texts for `settings_of`, the default first, and other packages' too.

    A method whose own published code has another rule for newlines is there twice, the second time with that rule. The
    default is there with the paper's choices as well, and with tokens that leave inside the language model; these ways
    are there alone, too.
    """
    found = [PRESET_METHOD, f"{PRESET_METHOD}:preset=paper"]
    for name in list_methods():
        rule = get_method(name).code_newlines
        found += [] if name == PRESET_METHOD else [name]
        found += [] if rule is None else [f"{name}:newlines={rule}"]
    for inside in INSIDE:
        found += [f"{PRESET_METHOD}:inside={inside}", f"{FULL}:inside={inside}"]
    return list(dict.fromkeys(found))


def possible_settings(
    model: Any, processor: Any, settings: list[EvalSetting], example: Example
) -> tuple[list[EvalSetting], dict[str, str]]:
    """The settings that a model can be in.

    Each is entered once. One that reads more than scores of one layer answers about an image, since families differ in
    what they have to read. All ratios of a method are taken or left together.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        settings: What is to be tried.
        example: An image for the trial.

    Returns:
        The settings that work, and of each other one the name without its ratio and the reason.
    """
    tried: dict[tuple[str, ...], str] = {}
    for setting in settings:
        key = _key(setting)
        if key not in tried:
            tried[key] = _refusal(model, processor, setting, example)
    refused = {key: reason for key, reason in tried.items() if reason}
    named = {" ".join(key): reason for key, reason in refused.items()}
    return [setting for setting in settings if _key(setting) not in refused], named


def _refusal(model: Any, processor: Any, setting: EvalSetting, example: Example) -> str:
    """Why a model cannot answer in a setting; empty if it can."""
    try:
        setting.block(model)
        if setting.method != FULL and not get_method(setting.method_name).on_scores_alone:
            one = Example(example.number, example.encoded, example.questions[:1])
            answer_in(model, processor, setting, [one])
    except GlobalCom2Error as error:
        return str(error)
    return ""


def _key(setting: EvalSetting) -> tuple[str, ...]:
    return setting.method_name, *(f"{name}={value}" for name, value in setting.options.items())
