"""The family Lanterna. globalcom2 finds it by the entry point in pyproject.toml."""

from globalcom2 import Family

FAMILY = Family(
    model_type="lanterna",
    target="globalcom2_lanterna_adapter:LanternaAdapter",
    scores="[CLS] row of the tower's last layer",
    thumbnail="first",
    tested="the weights of globalcom2's mini model",
    budget="exact, newlines included",
)
