"""A browser without a network, and the rendered site on a server of this machine."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

HTML = Path(__file__).resolve().parents[2] / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def site():
    """The address of the site, served from `_build/html`."""
    if not (HTML / "index.html").is_file():
        pytest.fail("there is no site to look at: run `make html` first")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    """Chromium: that of NCSN_BROWSER, of the machine, or Playwright's own; else a loud skip."""
    from playwright.sync_api import Error, sync_playwright

    found = os.environ.get("NCSN_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(
                executable_path=found, args=["--no-sandbox", "--disable-gpu"]
            )
        except Error as error:
            pytest.skip(
                "NO BROWSER: the site was not looked at. Install chromium, or run "
                f"`playwright install chromium` ({str(error).splitlines()[0]})"
            )
        yield chromium
        chromium.close()


class Visit:
    """A page in a browser that reaches nothing but the site, and what went wrong on the way."""

    def __init__(self, browser, site, **options):
        self.site = site
        self.foreign, self.failed, self.complaints, self.responses = [], [], [], []
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, **options}
        )
        self.context.route("**/*", self._route)
        self.page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.failed.append(request.url))
        self.page.on("response", lambda response: self.responses.append(response))

    def _route(self, route):
        if route.request.url.startswith((self.site, "data:", "blob:")):
            route.continue_()
        else:
            self.foreign.append(route.request.url)
            route.abort()

    def _console(self, message):
        if message.type == "error":
            self.complaints.append(message.text)

    def open(self, path):
        """Load a page and wait until everything on it is there, formulas included."""
        self.page.goto(self.site + path, wait_until="load")
        self.page.evaluate(
            "async () => { if (window.MathJax?.startup) await MathJax.startup.promise }"
        )
        self.failed += [r.url for r in self.responses if r.status >= 400]
        return self.page


@pytest.fixture
def visit(browser, site):
    """Make visits: `visit()`, or `visit(viewport=..., color_scheme=...)`."""
    visits = []

    def make(**options):
        visits.append(Visit(browser, site, **options))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()
