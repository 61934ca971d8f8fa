"""The structure of the page at `/`: one small file, whose scripts and forms agree with the interface."""

import re
from html.parser import HTMLParser

import pytest

from serve.api import PAGE, app
from serve.schemas.requests import ChatBody, MemoryField, SearchBody, WriteBody

TEXT = PAGE.read_text()
SCRIPT = TEXT[TEXT.index("<script") : TEXT.index("</script>")]


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.names, self.links, self.options = [], [], [], []
        self.feed(TEXT)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.names += [given["name"]] if "name" in given else []
        self.links += [given[key] for key in ("src", "href") if key in given]


def test_it_is_one_small_file_that_loads_nothing_from_elsewhere():
    assert len(TEXT.encode()) < 16_000
    links = Page().links
    assert {link for link in links if not link.startswith("data:")} == {"/docs", "/metrics"}
    assert any(link.startswith("data:image/svg+xml") for link in links)
    assert "//" not in re.sub(r"http://www\.w3\.org/2000/svg", "", TEXT)
    assert 'name="viewport" content="width=device-width' in TEXT and "@media (max-width" in TEXT


def test_the_script_finds_its_elements_and_the_interface_its_routes():
    page = Page()
    wanted = set(re.findall(r'\$\("(\w+)"\)', SCRIPT))
    assert wanted == wanted & {*page.ids} and len(page.ids) == len({*page.ids})
    routes = {*app.openapi()["paths"], "/ready"}
    for called in re.findall(r'call\([`"]([/\w]+)', SCRIPT):
        assert called in routes, called
    assert "/v1/memories/{memory_id}" in routes and "/v1/memories/{memory_id}/history" in routes


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (ChatBody, {"model", "messages", "memory"}),
        (MemoryField, {"namespace", "mode"}),
        (SearchBody, {"namespace", "query", "k", "trace", "complete", "retrieval"}),
        (WriteBody, {"namespace", "memories"}),
    ],
)
def test_what_it_sends_are_fields(body, fields):
    assert fields <= body.model_fields.keys()


def test_the_modes_are_those_of_the_interface_and_each_is_explained():
    listed = re.search(r'name="mode"[^>]*>\s*(.*)', TEXT).group(1)
    modes = {each.strip() for each in listed.split("<option>") if each.strip()}
    assert modes == {"prefix", "text", "hybrid", "full", "off"}
    for word in ("mode", "prefix", "evidence", "salience"):
        assert re.search(rf"<dt>[^<]*{word}", TEXT), word
    assert all(f"{mode}:" in TEXT for mode in modes)


def test_forget_asks_first_errors_replace_the_ellipsis_and_only_chat_models_are_listed():
    forget = SCRIPT[SCRIPT.index('textContent: "forget"') : SCRIPT.index('"DELETE"')]
    assert "if (!confirm(" in forget
    ask = SCRIPT[SCRIPT.index('$("ask").onsubmit') : SCRIPT.index('$("teach").onsubmit')]
    assert re.search(r'catch\(\(error\) => \{\s*\$\("answer"\)\.textContent = error\.message', ask)
    assert 'task === "chat"' in SCRIPT
