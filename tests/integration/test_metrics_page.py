"""The page of `spottmee-worker metrics`: what it shows, what it never shows, and how a browser draws it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import pytest

from demo.servers import EmbeddedRedis
from runner.metrics.drawing import chart
from runner.metrics.reader import FRESH_SECONDS
from runner.queue import keys
from tests.integration.test_metrics import Exporter, exporter
from tests.support.browser import CHROMIUM, Tab, browser
from tests.support.queue_tools import pass_time, push, queue_of

LIGHT, DARK = (251, 251, 250), (20, 23, 26)
SECRETS = ("SELFIE-BYTES", "signature=topsecret", "alice@example.com", "storage.googleapis.com")


@pytest.fixture
def filled(redis: Any, redis_url: str) -> Iterator[Exporter]:
    """Jobs in every state, whose payloads contain what must never be shown."""
    for name in ("process", "compare"):
        payload = {
            "id": "photo-id-1",
            "jobId": "job-id-1",
            "selfie": SECRETS[0],
            "imageUrl": f"https://{SECRETS[3]}/a?{SECRETS[1]}",
        }
        push(redis, [json.dumps(payload).encode()] * 6, name)
        queue = queue_of(redis, f"job/pod-{name}/0123", name=name)
        queue.carry({"runs_started": 2, "runs:empty": 1})
        done, dead, expired, _held = queue.claim(4)
        queue.acknowledge(done)
        queue.dead_letter(dead, "image_missing", f"no image for {SECRETS[2]}")
        queue.dead_letter(expired, "expired", "")
        queue.end_run(json.dumps({"claimed": 3, "exit_reason": "max_jobs", "runner": f"job/pod-{name}/0123"}))
    evil = queue_of(redis, 'job/<script>alert("x")</script>\x1b[31m/1')
    evil.claim(1)
    with exporter(redis_url) as running:
        yield running


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_shows_the_queues_the_runners_the_runs_and_what_to_do(filled: Exporter) -> None:
    status, headers, text = filled.get("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    for shown in ("pod-process", "pod-compare", "max_jobs", "2 started; ended: 1 empty; 1 active or killed"):
        assert shown in text
    assert "<code>spottmee-worker dead requeue --queue process --code image_missing</code>" in text
    assert "--code expired" not in text  # whose payload has expired
    assert "<title>3 waiting, 4 dead letters" in text


def test_the_page_never_shows_a_payload_an_id_or_a_message(filled: Exporter) -> None:
    for path in ("/", "/metrics"):
        text = html.unescape(filled.get(path)[2])
        for secret in (*SECRETS, "photo-id-1", "job-id-1"):
            assert secret not in text


def test_the_page_has_no_script_no_link_elsewhere_and_nothing_to_submit(filled: Exporter) -> None:
    _, headers, text = filled.get("/")
    parser = _Tags()
    parser.feed(text)
    names = {tag for tag, _ in parser.tags}
    assert not names & {"script", "form", "input", "button", "img", "iframe", "link", "object"}
    assert "\x1b" not in text
    assert {attrs["href"] for tag, attrs in parser.tags if tag == "a"} == {"#queues", "?refresh=on", "metrics"}
    assert not [attrs for _, attrs in parser.tags if "style" in attrs or any(name.startswith("on") for name in attrs)]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in headers["content-security-policy"]
    ids = [attrs["id"] for _, attrs in parser.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in parser.tags if "aria-labelledby" in attrs} <= set(ids)
    assert all(attrs.get("aria-label") for tag, attrs in parser.tags if tag == "svg")


def test_no_request_changes_a_job(filled: Exporter, redis: Any) -> None:
    def jobs() -> dict[bytes, bytes]:
        found = {key: redis.dump(key) for key in redis.scan_iter()}
        return {key: value for key, value in found.items() if not key.endswith((b":arrivals", b":history"))}

    before = jobs()
    for path in ("/", "/?refresh=on", "/metrics", "/healthz", "/dead/requeue", "/?delete=1"):
        filled.get(path)
        filled.get(path, "POST")
    assert jobs() == before


def test_refreshing_is_a_choice(filled: Exporter) -> None:
    assert "http-equiv" not in filled.get("/")[2]
    assert '<meta http-equiv="refresh" content="30">' in filled.get("/?refresh=on")[2]


def test_a_guest_who_waits_for_long_and_a_dead_runner_are_shown(filled: Exporter, redis: Any) -> None:
    filled.get("/")
    key = keys.arrivals("compare")
    for member, score in redis.zrange(key, 0, -1, withscores=True):
        redis.zrem(key, member)
        redis.zadd(key, {int(member) - 61_000: score})
    pass_time(redis, 31, "compare")
    time.sleep(FRESH_SECONDS)
    text = filled.get("/")[2]
    assert "<div class=bad><dt>Oldest</dt><dd>1 min</dd></div>" in text
    assert "expired: its runner has died or lost Redis" in text


def test_without_redis_the_page_says_so() -> None:
    with EmbeddedRedis() as gone:
        url = gone.url
    with exporter(url) as running:
        status, _, text = running.get("/")
    assert status == 200
    assert "Redis does not answer (redis_unreachable)" in text


def test_killed_runs_are_known_by_the_leases_that_they_left(filled: Exporter, redis: Any) -> None:
    assert "None of their leases has expired so far." in filled.get("/")[2]
    pass_time(redis, 31)
    queue_of(redis, "job/another/1").claim(2)
    time.sleep(FRESH_SECONDS)
    assert "2 of process expired while a run owned them" in filled.get("/")[2]


def test_a_chart_has_a_gap_where_nothing_was_sampled() -> None:
    points = [(60.0 * minute, 5.0) for minute in range(60) if not 20 < minute < 40]
    drawn = chart("Waiting", points, now=3600, seconds=3600, shape="area")
    assert drawn.count("<polyline") == 2
    assert 'aria-label="Waiting: now 5, at most 5"' in drawn
    assert chart("x", [], now=0, seconds=60, shape="bars").count("nothing recorded yet") == 2


# In a browser

FOCUSED = """(() => {
    const focused = document.activeElement, box = focused.getBoundingClientRect(), style = getComputedStyle(focused);
    return {
        tag: focused.tagName,
        name: focused.getAttribute("aria-label") || focused.textContent,
        outlined: style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2,
        seen: box.right > 0 && box.left < innerWidth && box.bottom > 0 && box.top < innerHeight,
    };
})()"""
# WCAG 2.2: 4.5 for text, 3 for what is drawn and for the outline of the focus.
CONTRASTS = """(() => {
    const rgb = (color) => (color.match(/[0-9.]+/g) || []).map(Number);
    const light = (color) => rgb(color).slice(0, 3)
        .map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const ratio = (one, other) => {
        const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05);
    };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor;
            if (rgb(color)[3] !== 0) return color;
        }
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const style = getComputedStyle(element), own = [...element.childNodes].some((node) => node.nodeType === 3);
        const name = element.tagName + "." + (element.className.baseVal ?? element.className);
        const drawn = element instanceof SVGElement;
        if (own && element.tagName !== "title") found.push([name, ratio(drawn ? style.fill : style.color, behind(element)), 4.5]);
        if (element.matches(".line, .bar")) found.push([name, ratio(style.stroke, behind(element)), 3]);
        if (element.matches("a, [tabindex]")) found.push([name, ratio(style.outlineColor, behind(element)), 3]);
    }
    return found;
})()"""  # noqa: E501 - JavaScript


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def address(running: Exporter) -> str:
    return f"http://127.0.0.1:{running.port}/"


def test_every_element_is_reached_by_tab_in_order_with_visible_focus(filled: Exporter, tab: Tab) -> None:
    for width in (1000, 390):
        tab.open(address(filled), width=width, height=844)
        names = []
        for _ in range(6):
            tab.press("Tab")
            focused = tab.ask(FOCUSED)
            assert focused["outlined"], focused
            assert focused["seen"], focused
            names.append(focused["name"])
        tables = ["Runners with leases", "The last 2 runs", "Dead letters by error code"]
        assert names == ["Skip to the queues", "Refresh every 30 s", "Metrics", *tables]
        assert tab.ask("document.querySelectorAll('a, summary, button, [tabindex]').length") == len(names)
        tab.press("Tab", shift=True)
        assert tab.ask(FOCUSED)["name"] == tables[1]


def test_the_skip_link_leads_past_the_links_and_is_hidden_until_then(filled: Exporter, tab: Tab) -> None:
    tab.open(address(filled))
    assert tab.ask("document.querySelector('.skip').getBoundingClientRect().right") < 0
    tab.press("Tab")
    tab.press("Enter")
    tab.press("Tab")
    assert tab.ask(FOCUSED)["name"] == "Runners with leases"


def test_refreshing_is_switched_on_and_off_by_key(filled: Exporter, tab: Tab) -> None:
    tab.open(address(filled))
    for shown in ("Stop refreshing", "Refresh every 30 s"):
        tab.press("Tab")
        tab.press("Tab")
        with tab.loading():
            tab.press("Enter")
        assert tab.ask("document.querySelector('header a').textContent") == shown


def test_a_phone_needs_no_sideways_scrolling_but_in_tables_which_scroll_by_key(filled: Exporter, tab: Tab) -> None:
    tab.open(address(filled), width=390, height=844)
    assert tab.ask("document.documentElement.scrollWidth") == 390
    regions = tab.ask("document.querySelectorAll('.scroll').length")
    for _ in range(3):
        tab.press("Tab")
    for _ in range(regions):
        tab.press("Tab")
        assert tab.ask("document.activeElement.scrollWidth > document.activeElement.clientWidth")
        tab.press("ArrowRight")
        tab.wait("document.activeElement.scrollLeft > 0")


@pytest.mark.parametrize("dark", [False, True])
def test_text_lines_and_focus_have_enough_contrast(filled: Exporter, tab: Tab, *, dark: bool) -> None:
    tab.open(address(filled), dark=dark)
    contrasts = tab.ask(CONTRASTS)
    assert len(contrasts) > 50
    assert [one for one in contrasts if one[1] < one[2]] == []
    print(f"the least: {min(contrasts, key=lambda one: one[1] / one[2])}")


@pytest.mark.parametrize(("dark", "background"), [(False, LIGHT), (True, DARK)])
def test_a_browser_applies_the_stylesheet_in_light_and_dark(
    filled: Exporter, tab: Tab, tmp_path: Path, background: tuple[int, int, int], *, dark: bool
) -> None:
    """The Content-Security-Policy allows the page's own style, and reports nothing."""
    tab.problems.clear()
    tab.open(address(filled), dark=dark)
    tab.photograph(tmp_path / "page.png")
    assert tab.problems == []
    image = cv2.imread(str(tmp_path / "page.png"))
    assert image is not None
    assert tuple(int(value) for value in image[700, 2][::-1]) == background
    assert len({tuple(pixel) for row in image[::7, ::7] for pixel in row}) > 20  # something is drawn on it
