"""The live page in a real browser: drawn, and kept up to date, from this machine alone.

It needs Debian's chromium, or the one that CHROMIUM names, and playwright.
"""

import contextlib
import os
import shutil
import threading

import pytest

from experiments.dashboard import __main__ as dashboard
from tests.scripts import test_dashboard as written

pytestmark = pytest.mark.long
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
SOON = 120_000  # milliseconds that a change may take; a machine may be busy


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("dash")
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with api.sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
        with contextlib.closing(playwright.chromium.launch(**options)) as made:
            yield made


@pytest.fixture
def runs(tmp_path):
    """Gives folders of two settings, one of them with two seeds."""
    for seed in (1, 2):
        records = [written.record(0), written.evaluated(1, 0.3 + 0.1 * seed)]
        written.folder(tmp_path / f"a/seed_{seed}", records, seed=seed)
    written.folder(tmp_path / "b", [written.evaluated(n) for n in range(4)], lr=0.2)
    return tmp_path


@pytest.fixture
def page(browser, runs):
    """Gives the page, open, with `said` and `asked` of its console and requests."""
    server = dashboard.serve([runs], 0, 0.3)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    where = f"http://127.0.0.1:{server.server_port}/"
    with contextlib.closing(browser.new_page()) as opened:
        opened.said, opened.asked, opened.where = [], [], where
        opened.on("console", lambda m: opened.said.append((m.type, m.text)))
        opened.on("pageerror", lambda error: opened.said.append(("error", str(error))))
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.goto(where)
        drawn = "#panel-measure path.js-line"
        opened.wait_for_selector(drawn, state="attached", timeout=SOON)
        yield opened
    server.shutdown()
    thread.join()
    server.server_close()


def faults(page):
    """Gives errors of the console, and requests to anywhere else."""
    local = (page.where, "data:", "blob:")
    elsewhere = [url for url in page.asked if not url.startswith(local)]
    return [said for said in page.said if said[0] == "error"], elsewhere


def rows(page):
    return page.locator("#body tr").all_inner_texts()


def test_it_is_drawn(page):
    assert len(rows(page)) == 3
    assert page.locator("#legend .key").all_inner_texts() == ["a 2 seeds", "b"]
    assert "2 running" in page.inner_text("#summary")
    assert page.locator(".panel:visible").count() >= 9
    assert page.locator("#panel-measure .js-fill").count() == 1  # the band
    assert faults(page) == ([], [])


def test_records_and_alerts_appear_without_a_reload(page, runs):
    page.evaluate("window.stays = true")
    written.lines(runs / "a/seed_1/metrics.jsonl", [written.evaluated(2, 0.875)])
    page.wait_for_selector("text=87.5", timeout=SOON)
    assert page.locator("#alerts li").count() == 0
    alert = {"round": 2, "kind": "refused", "message": "round 2: refused client 7"}
    written.lines(runs / "a/seed_1/alerts.jsonl", [alert])
    page.wait_for_selector("text=refused client 7", timeout=SOON)
    written.folder(runs / "new", [written.record(0)], lr=0.3)
    page.wait_for_selector("#body tr:nth-child(4)", timeout=SOON)
    shutil.rmtree(runs / "b")
    with open(runs / "new/metrics.jsonl", "a") as file:
        file.write('{"round": 1, "tr')
    page.wait_for_selector("#body tr:nth-child(4)", state="detached", timeout=SOON)
    assert page.evaluate("window.stays")
    assert faults(page) == ([], [])


def test_it_answers_its_reader(page):
    page.click("text=devices' clock")
    page.wait_for_selector("#panel-measure >> text=virtual time (s)", timeout=SOON)
    page.wait_for_selector("#panel-clock", state="hidden", timeout=SOON)
    page.click("#seeds >> text=each")
    page.wait_for_selector("#legend >> text=a/seed_2", timeout=SOON)
    page.click("#head >> text=lr")
    page.wait_for_selector("#head >> text=lr ▴", timeout=SOON)
    page.click("#head >> text=lr")
    page.wait_for_selector("#head >> text=lr ▾", timeout=SOON)
    page.wait_for_selector("#body tr:first-child >> text=0.2", timeout=SOON)
    page.click("#filters")
    # What is typed before the search has the focus, or sooner than it filters, is lost.
    page.wait_for_selector(".dash-dropdown-search:focus", timeout=SOON)
    page.keyboard.type("lr = 0.2")
    option = "[role=option][data-option-index='0'] >> text=lr = 0.2"
    page.wait_for_selector(option, timeout=SOON)
    page.click(option)
    page.wait_for_selector("#summary >> text=1 of 3 pass", timeout=SOON)
    assert len(rows(page)) == 1
    assert faults(page) == ([], [])


def test_it_is_dark_where_its_reader_is(page):
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "getComputedStyle(document.querySelector('#panel-measure .gtitle')).fill"
        " === 'rgb(201, 206, 214)'",
        timeout=SOON,
    )
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function("document.body.scrollWidth <= 400", timeout=SOON)
    assert faults(page) == ([], [])
