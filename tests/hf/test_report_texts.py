"""What a person reads of a report: one line per image, and why there is none."""

import pytest

from calls import IMAGE_ROWS, generate
from globalcom2 import Report, compress
from tiny import picture


def test_an_entry_prints_as_one_line(tiny, batch):
    with compress(tiny.model, 0.2) as compression:
        generate(tiny.model, batch)
    report = compression.report
    lines = [repr(entry) for entry in report]
    assert all("\n" not in line and len(line) < 100 for line in lines)
    assert [line.split(", ")[1] for line in lines] == [f"row {row}" for row in IMAGE_ROWS]
    entry = report.to_dict()["images"][1]  # 60 x 200: three crops, one above the other
    before, after = entry["tokens_before"], entry["tokens_after"]
    assert lines[1] == f"ImageReport(image, row 0, 3 x 1 crops, {before} -> {after} tokens)"
    assert after < before


def test_a_report_counts_its_images(tiny, batch):
    with compress(tiny.model, 0.2) as compression:
        generate(tiny.model, tiny.inputs(["<image>"], [picture(84, 84)]))
        one = compression.report
        generate(tiny.model, batch)
    assert repr(one).startswith("Report('globalcom2', retention_ratio=0.2, 1 image, ")
    assert f"retention_ratio=0.2, {len(IMAGE_ROWS)} images, " in repr(compression.report)
    assert repr(Report(0.2, "uniform")) == "Report('uniform', retention_ratio=0.2, 0 images, 0 -> 0 visual tokens)"


@pytest.mark.parametrize("why", ["no images", "passed through"])
def test_an_empty_report_says_why_it_has_no_entries(tiny, why):
    inputs = tiny.inputs(["text"], None) if why == "no images" else tiny.inputs(["<image>"], [picture(84, 84)])
    if why == "passed through":
        ids = inputs.pop("input_ids")
        inputs["inputs_embeds"] = tiny.model.get_input_embeddings()(ids)
        inputs.pop("pixel_values"), inputs.pop("image_sizes")
    with compress(tiny.model, 0.2) as compression:
        generate(tiny.model, inputs)
    assert list(compression.report) == []
    assert compression.report[:] == ()
    with pytest.raises(IndexError, match=r"nothing was compressed in the last call.*no images"):
        compression.report[0]


def test_an_index_out_of_range_names_the_range(tiny, batch):
    with compress(tiny.model, 0.2) as compression:
        generate(tiny.model, batch)
    report = compression.report
    assert report[-4] is report[0]
    assert len(report[1:9]) == 3
    with pytest.raises(IndexError, match=r"in \[-4, 4\), got 4"):
        report[4]


def test_a_report_prints_its_entries_below_each_other(tiny, batch):
    with compress(tiny.model, 0.2) as compression:
        generate(tiny.model, batch)
    report = compression.report
    first, *lines = str(report).split("\n")
    assert first == repr(report)
    assert "\n" not in repr(report)
    assert lines == [f"  {number}: {entry!r}" for number, entry in enumerate(report)]
    many = type(report)(0.2, "globalcom2", list(report) * 10)
    assert len(str(many).split("\n")) == 22
    assert str(many).endswith("and 20 more")
