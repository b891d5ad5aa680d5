"""The rules for newlines in a whole call."""

from globalcom2 import compress, load_mini
from globalcom2.lab.chat import chat_prompt
from globalcom2.mini import demo_picture


def test_as_many_tokens_and_fewer_newlines():
    model, processor = load_mini()
    inputs = processor(text=chat_prompt(processor, "how many?"), images=demo_picture(), return_tensors="pt")
    counts = {}
    for rule in ("counted", "from_2", "from_3", "none"):
        with compress(model, 0.05, newlines=rule) as compression:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
        entry = compression.report[0]
        newlines = int(entry.keep.newlines.sum())
        counts[rule] = (entry.tokens_after, newlines)
    assert len({total for total, _ in counts.values()}) == 1
    assert counts["counted"][1] > counts["from_2"][1] > counts["from_3"][1] >= counts["none"][1] == 0
