"""The tables of docs/speed.md are those of docs/benchmark/."""

import json
import shutil

from lfvit.results.speed import PAGE, updated_page


def test_the_page_is_what_the_command_writes():
    text = PAGE.read_text("utf-8")
    assert updated_page() == text
    assert {"<!-- benchmark/cpu -->", "<!-- benchmark/gpu -->"} <= set(text.splitlines())


def test_tables_come_from_the_folder_that_the_page_names(tmp_path):
    shutil.copytree(PAGE.parent / "benchmark" / "gpu", tmp_path / "benchmark" / "gpu")
    path = tmp_path / "benchmark" / "gpu" / "benchmark.json"
    content = json.loads(path.read_text("utf-8"))
    content["rows"][0]["images_per_second"] = 1234.5
    content["environment"]["command"] = "python benchmark.py a=1"
    path.write_text(json.dumps(content), "utf-8")
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- benchmark/gpu -->\nold\n<!-- end -->\n\nrest\n", "utf-8")
    page.write_text(updated_page(page), "utf-8")
    assert updated_page(page) == page.read_text("utf-8")  # written twice is written once
    text = page.read_text("utf-8")
    assert text.startswith("# A\n\n<!-- benchmark/gpu -->\n")
    assert text.endswith("\n<!-- end -->\n\nrest\n")
    assert "old" not in text
    for shown in (
        "`python benchmark.py a=1`, commit ",
        "| 1234.5 |",
        "**Inference, bf16, not comp",
    ):
        assert shown in text
    page.write_text("<!-- benchmark/tpu -->\n<!-- end -->\n", "utf-8")
    assert "Not measured yet." in updated_page(page)
