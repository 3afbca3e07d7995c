import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.pipeline import run_line
from loopline.report.page import refresh_report, write_report
from loopline.report.render import visible
from tests.report.synthetic import HOSTILE, make_run, synthetic_recipe

VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}
ADDRESSES = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction", "background"}


class Page(HTMLParser):
    """What a browser would make of a page: elements, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.style = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.texts.append(data)


@pytest.fixture(scope="module")
def full_page(full_run) -> str:
    return write_report(full_run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(full_page) -> Page:
    return Page(full_page)


def test_markup_is_balanced_and_ids_are_unique(parsed):
    assert parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes.get("href") or "" for tag, attributes in parsed.elements if tag == "a"]
    assert links and all(link.removeprefix("#") in ids for link in links)
    cards = [attributes["popovertarget"] for _, attributes in parsed.elements if "popovertarget" in attributes]
    assert cards and set(cards) <= set(ids)


def test_nothing_a_model_wrote_becomes_markup(parsed):
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "base", "form", "video", "audio"}
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
    # It is shown all the same, as text, wherever models, users or documents were quoted.
    text = "".join(parsed.texts)
    assert text.count("<script>alert(1)</script>") > 20
    assert "{{ 7 * 7 }}" in text and "49" not in re.findall(r"x</a>(.{0,4})", text)


def test_unseen_characters_are_spelled_out(full_page):
    assert "\x1b" not in full_page and "\u202e" not in full_page
    assert "\\u001b[31m\\u202e" in full_page


def test_the_page_asks_for_nothing_from_elsewhere(full_page, parsed):
    for tag, attributes in parsed.elements:
        for name in ADDRESSES & attributes.keys():
            value = attributes[name] or ""
            assert value.startswith("#") or value == "data:,", f"<{tag} {name}={value}>"
        assert "url(" not in (attributes.get("style") or "")
    assert "url(" not in parsed.style and "@import" not in parsed.style and "@font-face" not in parsed.style
    assert "://" not in full_page
    policy = next(a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_the_page_shows_the_numbers_of_the_report(full_report, parsed):
    text = " ".join(" ".join(parsed.texts).split())
    assert full_report["sentence"] in text
    row = next(
        row for row in full_report["evaluations"] if row["checkpoint"] == "grpo" and row["task"] == "tag:reasoning"
    )
    assert f"{100 * row['value']:.1f}%" in text and f"{100 * row['low']:.1f}–{100 * row['high']:.1f}" in text
    titles = [attributes.get("aria-label") or "" for tag, attributes in parsed.elements if tag == "svg"]
    gain = next(row for row in full_report["comparisons"] if (row["a"], row["task"]) == ("grpo", "tag:reasoning"))
    wanted = f"grpo against sft, tag:reasoning, {gain['metric']}: +{100 * gain['difference']:.1f} points"
    assert any(wanted in title for title in titles)
    assert "1 not graded" in text
    for stage in full_report["stages"]:
        assert stage["digest"] in text
    for command in full_report["commands"]:
        assert command["command"] in text


def test_a_page_of_an_unfinished_run_says_what_is_missing(tmp_path):
    with pytest.raises(RuntimeError):
        run_line(synthetic_recipe({"data": "tests.report.synthetic:fail"}), tmp_path)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.texts).split())
    assert "The run stopped at data; 3 of" in text
    assert "No checkpoint has been evaluated yet." in text
    assert "The stage release is pending, so there is nothing to show here yet." in text.replace("  ", " ")
    assert page.open == []


def test_a_run_makes_a_page_wherever_it_stops(full_run, tmp_path):
    shutil.copytree(full_run, tmp_path / "demo")
    board = read_json(full_run / "run.json")
    stops = ("raw", "data", "graders", "plan", "pretrain", "evaluate_pretrain", "grpo", "harness", "release", "remix")
    pending = {"state": "pending", "seconds": None, "digest": None, "identity": None, "path": None, "why": ""}
    for stop in stops:
        last = [row["name"] for row in board["stages"]].index(stop)
        rows = [row if number <= last else row | pending for number, row in enumerate(board["stages"])]
        write_json(tmp_path / "demo" / "run.json", {**board, "stages": rows})
        page = Page(write_report(tmp_path / "demo").read_text(encoding="utf-8"))
        assert page.open == []
        assert f"{last + 1} of {len(rows)}" in "".join(page.texts)


def test_refresh_leaves_a_true_page_alone(tmp_path):
    run_dir = make_run(tmp_path / "demo", until="evaluate_pretrain")
    page = refresh_report(run_dir)
    before = page.stat()
    assert refresh_report(run_dir) == page
    assert (page.stat().st_mtime_ns, page.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    board = read_json(run_dir / "run.json")
    board["stages"][-1]["state"] = "failed"
    write_json(run_dir / "run.json", board)
    refresh_report(run_dir)
    assert page.stat().st_ino != before.st_ino
    assert "failed" in page.read_text(encoding="utf-8")
    after = page.stat()
    page.write_text(page.read_text(encoding="utf-8").replace('name="loopline-report"', 'name="other"'))
    refresh_report(run_dir)
    assert page.stat().st_ino != after.st_ino


def test_a_refresh_with_nothing_to_do_is_cheap(full_run):
    write_report(full_run)
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom loopline.report.page import refresh_report\n"
        "refresh_report(Path(sys.argv[1]))\n"
        "print(time.process_time(), *{'torch', 'numpy', 'pydantic', 'jinja2', 'yaml', 'rich'} & sys.modules.keys())"
    )
    page = full_run / "report.html"
    before = page.stat().st_mtime_ns
    out = subprocess.run(
        [sys.executable, "-c", script, str(full_run)], capture_output=True, text=True, check=True, env=os.environ
    )
    seconds, *heavy = out.stdout.split()
    assert page.stat().st_mtime_ns == before
    assert float(seconds) < 0.3
    assert heavy == []


def test_without_a_run_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match="There is no run"):
        refresh_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_text_that_utf8_cannot_hold_is_shown_escaped():
    assert visible("a\ud800b") == "a\\ud800b"
    assert visible("<b>&") == "&lt;b&gt;&amp;"
    assert visible(HOSTILE).count("<") == HOSTILE.count("://")


def test_templates_are_installed_beside_the_code():
    import loopline.report

    folder = Path(loopline.report.__file__).parent / "templates"
    assert {"page.html", "style.css"} <= {path.name for path in folder.iterdir()}
