"""The selector `spread`. globalcom2 finds it by the entry point in pyproject.toml."""

from globalcom2 import Method

METHOD = Method(
    name="spread",
    target="globalcom2_spread_selector:spread",
    summary="The same ratio for every view; the best token of every block first",
    source="an example",
    needs_grid=False,
)
