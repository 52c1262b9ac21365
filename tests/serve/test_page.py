"""The page in a real browser: upload, ask, stream, stop, second turn, overlay."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from moe_llava.generate.engine import Engine
from moe_llava.serve.api import create_app
from moe_llava.serve.service import Service
from moe_llava.serve.web import mount_page
from tests.serve.conftest import encoded, held, new_service, running, wait_for
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
    overlays = page.locator("#pictures svg")
    expect(overlays).to_have_count(2, timeout=SLOW)
    assert overlays.first.locator("rect").count() == 4
    wait_for(lambda: service.scheduler.idle)
    before = page.inner_text("#loads")
    assert "layer 0" in before and "expert 3" in before
    bots = page.locator("#chat .bot.message, #chat .message.bot")
    expect(bots).to_have_count(1, timeout=SLOW)
    ask(page, "Why?")
    expect(bots).to_have_count(2, timeout=SLOW)
    wait_for(lambda: service.scheduler.idle)
    page.click("#clear")
    expect(bots).to_have_count(0, timeout=SLOW)
    expect(overlays).to_have_count(0, timeout=SLOW)


def test_stop_gives_the_place_free_and_retry_answers_again(page: Page, service: Service) -> None:
    scheduler = service.scheduler
    with held(scheduler) as let:
        ask(page, "Hello")
        for _ in range(2):
            wait_for(lambda: scheduler.running == 1)
            job = scheduler._running[0].job
            page.click("#stop")
            wait_for(lambda job=job: job.cancelled)
            let(1)
            wait_for(lambda: scheduler.idle)
            page.click("#retry")
        wait_for(lambda: scheduler.running == 1)
    wait_for(lambda: scheduler.idle)


def test_a_picture_that_is_none_is_told_and_forgotten(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    ask(page, "What is it?", broken)
    expect(page.get_by_text("no image").or_(page.get_by_text("cannot be decoded"))).to_be_visible(timeout=SLOW)
    ask(page, "Hello")
    expect(page.locator("#chat .message.bot")).to_have_count(1, timeout=SLOW)


def test_a_picture_is_pasted(page: Page) -> None:
    pixels = encoded(Image.new("RGB", (40, 40), "red"))
    page.evaluate(
        """content => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
            data.items.add(new File([bytes], "p.png", {type: "image/png"}));
            document.querySelector("#box textarea").dispatchEvent(
                new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
        }""",
        base64.b64encode(pixels).decode(),
    )
    expect(page.locator("#box .thumbnail-item")).to_have_count(1, timeout=SLOW)
    ask(page, "What?")
    expect(page.locator("#pictures h4")).to_have_text("Who saw what, in layer 0", timeout=SLOW)


def test_it_fits_a_phone(browser: Browser, page_url: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(page_url)
    page.wait_for_selector("#box textarea", timeout=SLOW)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
