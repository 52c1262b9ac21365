"""The page in a real browser: upload, ask, stream, stop, second turn, overlay."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from moe_llava.generate.engine import Engine
from moe_llava.serve.api import create_app
from moe_llava.serve.service import Service
from moe_llava.serve.web import mount_page
from tests.serve.conftest import new_service, running, wait_for
from tests.tiny import Tiny

# Gradio sets an option that newer pandas warns of.
pytestmark = pytest.mark.filterwarnings("ignore:.*no_silent_downcasting")
SLOW = 60_000  # milliseconds; a page's first load on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium: install one (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(engine: Engine) -> Iterator[Service]:
    service = new_service(engine)
    yield service
    assert service.scheduler.close(timeout=60)


@pytest.fixture(scope="module")
def page_url(service: Service) -> Iterator[str]:
    app = create_app(service)
    mount_page(app, service, api_key=None, max_file_bytes=1_000_000)
    with running(app, service.scheduler) as url:
        yield url


@pytest.fixture
def page(browser: Browser, page_url: str) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(SLOW)
    page.goto(page_url)
    page.wait_for_selector("#box textarea")
    yield page
    page.close()


def ask(page: Page, text: str, *pictures: Path) -> None:
    if pictures:
        page.set_input_files("#box input[type=file]", [str(picture) for picture in pictures])
        expect(page.locator("#box .thumbnail-item")).to_have_count(len(pictures), timeout=SLOW)
    page.fill("#box textarea", text)
    page.press("#box textarea", "Enter")


def test_upload_ask_overlay_and_a_second_turn(page: Page, service: Service, tiny: Tiny) -> None:
    red, blue = (tiny.folder / "images" / f"{name}.png" for name in ("red", "blue"))
    ask(page, "What colour is it?", red, blue)
    overlays = page.locator("#panel svg")
    expect(overlays).to_have_count(2, timeout=SLOW)
    assert overlays.first.locator("rect").count() == 4
    wait_for(lambda: service.scheduler.idle, 60)
    before = page.inner_text("#panel")
    assert "layer 0" in before and "expert 3" in before
    bots = page.locator("#chat .bot.message, #chat .message.bot")
    expect(bots).to_have_count(1, timeout=SLOW)
    ask(page, "Why?")
    expect(bots).to_have_count(2, timeout=SLOW)
    wait_for(lambda: service.scheduler.idle, 60)
    page.click("#clear")
    expect(bots).to_have_count(0, timeout=SLOW)
    expect(overlays).to_have_count(0, timeout=SLOW)


def test_stop_gives_the_place_free_and_retry_answers_again(page: Page, service: Service) -> None:
    ask(page, "Hello")
    wait_for(lambda: service.scheduler.running == 1, 60)
    page.click("#stop")
    wait_for(lambda: service.scheduler.running == 0, 30)
    assert 'finish="cancelled"' in service.metrics.text().decode()
    page.click("#retry")
    wait_for(lambda: service.scheduler.running == 1, 60)
    page.click("#stop")
    wait_for(lambda: service.scheduler.idle, 30)


def test_it_fits_a_phone(browser: Browser, page_url: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(page_url)
    page.wait_for_selector("#box textarea", timeout=SLOW)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
