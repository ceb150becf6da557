import base64
import hashlib
import html.parser
import json
import re

from jopd.page.document import as_json, document
from jopd.page.records import read_run
from tests.page.runs import HOSTILE, write_run


class Elements(html.parser.HTMLParser):
    """The elements as a browser would find them, and the texts of the scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.scripts, self.attributes = [], [], []
        self.in_script = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        self.in_script = tag == "script"

    def handle_endtag(self, tag):
        self.in_script = False

    def handle_data(self, data):
        if self.in_script:
            self.scripts[-1] += data


def test_what_models_and_data_say_opens_no_element(tmp_path):
    name = HOSTILE.replace("/", "")
    run = read_run(write_run(tmp_path / "run", name=HOSTILE), name)
    page = document([run])
    found = Elements(page)
    plain = Elements(document([read_run(tmp_path / "run", "run") | {"samples": run["samples"]}]))
    assert found.tags == plain.tags
    assert "img" not in found.tags
    data, _ = found.scripts
    assert json.loads(data)["runs"] == [run]


def test_no_script_but_the_pages_own_may_run_and_nothing_is_asked_for(tmp_path):
    page = document([read_run(write_run(tmp_path / "run"), "run")])
    found = Elements(page)
    (policy,) = (it["content"] for tag, it in found.attributes if it.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(found.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]
    assert "connect-src" not in policy
    assert "connect-src 'self'" in document([], live=True)
    for _, attributes in found.attributes:
        assert "src" not in attributes
        assert attributes.get("href") in (None, "data:,")


def test_texts_that_look_like_the_pages_own_places_stay_texts(tmp_path):
    run = read_run(write_run(tmp_path / "run", name="[[SCRIPT]] [[DATA]]"), "[[STYLES]]")
    data, script = Elements(document([run])).scripts
    assert json.loads(data)["runs"][0]["method"] == "[[SCRIPT]] [[DATA]]"
    assert script.startswith('\n"use strict"') or script.startswith('"use strict"')


def test_json_in_html_holds_no_tag_and_no_line_end_of_a_script():
    text = as_json({"a": "</script><!-- & \u2028\u2029"})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": "</script><!-- & \u2028\u2029"}
