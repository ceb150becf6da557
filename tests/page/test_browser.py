"""The page in a browser: skipped where playwright or Chromium is missing."""

import os
import shutil

import pytest

from jopd.page.document import document
from jopd.page.records import read_run
from tests.page.runs import HOSTILE, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
TABS = ("Result", "Tokens", "Curves", "Profiles", "Checklist", "Settings")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # Chromium's sandbox needs a user other than root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(params=[1300, 380], ids=["wide", "phone"])
def page(request, browser, tmp_path):
    runs = [write_run(tmp_path / f"run{seed}", seed=seed) for seed in (0, 1)]
    file = tmp_path / "page.html"
    file.write_text(document([read_run(run, f"{run.name} {HOSTILE}") for run in runs]))
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    yield page
    assert said == []
    assert page.title() != "taken" and page.locator("img").count() == 0
    page.close()


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_every_tab_shows_something_within_the_screen(page):
    for name in TABS:
        open_tab(page, name)
        assert page.get_by_role("tabpanel").inner_text().strip()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1"), name


def test_the_slider_moves_through_the_evaluations(page):
    open_tab(page, "Tokens")
    assert "step 3" in page.locator("label.wide").inner_text()
    assert page.locator(".answer").first.locator(".sides > div").count() == 2
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert "step 0" in page.locator("label.wide").inner_text()
    assert "✗ wrong" in page.locator(".answer").first.inner_text()
    assert page.locator(".answer").first.locator(".sides > div").count() == 1


def test_a_hover_and_the_keyboard_show_a_tokens_numbers(page):
    open_tab(page, "Tokens")
    after = page.locator(".answer").first.locator(".text").last
    after.locator(".token").first.hover()
    detail = page.locator("#detail")
    assert "seven" in detail.inner_text() and "75.00 %" in detail.inner_text()
    assert HOSTILE in detail.inner_text()
    after.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    assert "token 2 of 2" in detail.inner_text()
    kl = detail.locator("tr", has_text="kl").last
    assert "4.5" in kl.inner_text()


def test_colours_and_filters_follow_the_measure(page):
    open_tab(page, "Tokens")
    text = page.locator(".answer").first.locator(".text").last
    assert "less" in text.locator(".token").first.get_attribute("class")  # a push below 0
    page.get_by_label("Colour").select_option("measures/kl")
    text = page.locator(".answer").first.locator(".text").last
    assert "more" in text.locator(".token").last.get_attribute("class")
    page.get_by_label("Answers").select_option("changed")
    assert page.locator(".answer").count() == 1
    page.get_by_label("Answers").select_option("wrong")
    assert page.locator(".answer").count() == 0


def test_seeds_of_the_same_settings_are_a_band(page):
    open_tab(page, "Curves")
    page.wait_for_selector("figure canvas")
    figure = page.locator("figure", has_text="accuracy").first
    # Of .75 and .76.
    assert "2 seeds of run0" in figure.inner_text() and "75.5 [75, 76]" in figure.inner_text()
    page.get_by_label("seeds of the same settings").uncheck()
    page.wait_for_selector("figure canvas")
    figure = page.locator("figure", has_text="accuracy").first
    assert "75 [65, 85]" in figure.inner_text() and "76 [66, 86]" in figure.inner_text()


def test_what_differs_is_told_first(page):
    open_tab(page, "Settings")
    rows = page.locator("table").first.locator("tbody tr")
    assert [row.split("\t")[0] for row in rows.all_inner_texts()] == ["seed", "output"]


def test_a_control_stays_in_hand(page):
    open_tab(page, "Tokens")
    page.get_by_label("Colour").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.tagName") == "SELECT"
    assert page.evaluate("document.activeElement.value") == "measures/kl"


def test_what_was_written_is_marked_and_escape_puts_the_numbers_away(page):
    open_tab(page, "Tokens")
    page.locator(".answer").first.locator(".token").first.hover()
    assert page.locator("#detail tr.sampled").all_inner_texts()[0].startswith("“seven”")
    page.keyboard.press("Escape")
    assert page.locator("#detail").inner_text() == ""
