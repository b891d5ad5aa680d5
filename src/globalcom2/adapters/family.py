"""What the registry knows of a model family, without loading its adapter."""

from __future__ import annotations

from dataclasses import dataclass, fields

from globalcom2.errors import InputError


@dataclass(frozen=True)
class Family:
    """One model family: `model.config.model_type`, and where its adapter is. The rest is for tables.

    Another package adds one with an entry point in the group `globalcom2.families`, or with `register_family`.

    Raises:
        InputError: A field of the wrong type or without content.
    """

    model_type: str
    """`model.config.model_type`."""
    target: str
    """The adapter, as "module:Class", imported on first use; a subclass of `globalcom2.adapters.base.Adapter`."""
    scores: str
    """Where the tokens' scores come from."""
    thumbnail: str
    """Where the thumbnail stands in the prompt."""
    tested: str
    """What the family was tested with."""
    budget: str = "exact"
    """What the budget covers."""
    checkpoints: tuple[str, ...] = ()
    """Names of published checkpoints, OWNER/NAME on the hub, the best known first."""
    vllm: bool = False
    """Whether this package's vLLM plugin compresses the family."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "str" and not (isinstance(value, str) and value.strip()):
                raise InputError(f"{field.name} of a Family must be a text that is not empty, got {value!r}.")
        module, _, name = self.target.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), name]):
            raise InputError(
                f"target of family {self.model_type!r} must be 'module:Class', got {self.target!r}. "
                f"Write 'my_package.my_file:MyAdapter'."
            )
        named = isinstance(self.checkpoints, tuple) and all(isinstance(name, str) for name in self.checkpoints)
        if not named or any(name.count("/") != 1 or " " in name for name in self.checkpoints):
            raise InputError(
                f"checkpoints of family {self.model_type!r} must be a tuple of names as OWNER/NAME, got "
                f"{self.checkpoints!r}."
            )
        if not isinstance(self.vllm, bool):
            raise InputError(f"vllm of family {self.model_type!r} must be True or False, got {self.vllm!r}.")
