"""A model of your own: here LLaVA-NeXT under another name, as a fork of it would be."""

from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration


class LanternaConfig(LlavaNextConfig):
    """A configuration with its own model type, by which globalcom2 finds the family."""

    model_type = "lanterna"


class LanternaForConditionalGeneration(LlavaNextForConditionalGeneration):
    """The model."""

    config_class = LanternaConfig
