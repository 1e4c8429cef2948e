"""The rendered site as readers meet it: offline, in light and dark, on a phone, by keyboard.

Needs the site in `_build/html` (`make html`); `make browser` builds it first.
"""

import gzip
import posixpath
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import axe_playwright_python
import pytest
from bs4 import BeautifulSoup
from conftest import HTML

pytestmark = pytest.mark.browser

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if "_static" not in path.parts and path.name not in ("index.html", "py-modindex.html")
)
CONTENT = [page for page in PAGES if page.startswith(("book/", "notebooks/"))]
CHAPTERS = [page for page in CONTENT if page.startswith("notebooks/") and page.count("/") == 1]
MEGABYTE = 1_000_000
IS_WHITE = """(image) => {
    const canvas = document.createElement('canvas').getContext('2d');
    canvas.drawImage(image, 0, 0);
    return canvas.getImageData(0, 0, 1, 1).data.every(value => value > 250);
}"""
TEXT = ("text/", "javascript", "json", "svg")


def test_there_are_pages():
    assert len(CHAPTERS) >= 13
    assert "book/scorecard.html" in CONTENT


@pytest.mark.parametrize("path", CONTENT)
def test_every_number_is_in_its_place(path):
    """No role or block is left as it was written, and none has become an error.

    And no number has become an item of a list ("48." at the beginning of a line), no history of a
    fit is printed.
    """
    page = (HTML / path).read_text(encoding="utf-8")
    assert not re.findall(r"<li>\s*(?:<p>\s*</p>)?\s*</li>|output text_plain.*?>tensor\(\[", page)
    assert not re.findall(r"\{(?:measured|claims?|promise)\}|ncsn-block|<!-- ncsn:", page)
    assert not re.findall(r'class="(?:problematic|system-message)"', page)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_and_everybody_can_read_it(visit, path):
    """One visit: nothing foreign, missing or wrong, at most 2 MB, a phone's width, and axe-core."""
    here = visit(color_scheme="light")
    page = here.open(path)
    assert here.foreign == []
    assert here.failed == []
    assert here.complaints == []
    found = page.evaluate(
        """() => ({
            untypeset: [...document.querySelectorAll('.math')]
                .filter(m => !m.querySelector('mjx-container')).map(m => m.textContent),
            wrong: [...document.querySelectorAll('mjx-merror')].map(m => m.textContent),
            broken: [...document.images].filter(i => !i.naturalWidth).map(i => i.src),
            silent: [...document.images].filter(i => !i.alt.trim()).map(i => i.src),
            clipped: [...document.querySelectorAll('div.math')]
                .filter(m => m.scrollWidth > m.clientWidth + 2).map(m => m.textContent),
            cards: [...document.querySelectorAll('.cell_output img')].filter(isWhite)
                .map(i => i.alt),
        })""".replace("isWhite", IS_WHITE)
    )
    if "/runs/" in path:  # records of long runs stay as they were executed, on white
        found["cards"] = []
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    assert sum(map(travels, here.responses)) <= 2 * MEGABYTE
    if path in CONTENT:
        assert complaints_of_axe(page) == {"light": [], "dark": []}
    if path in CHAPTERS:  # it leads on, and can be taken away
        assert page.locator(".prev-next-footer a.left-prev").count() == 1
        assert page.locator(".prev-next-footer a.right-next").count() == 1
        download = page.locator(".btn-download-source-button")
        assert download.first.get_attribute("href", timeout=1000).endswith(".ipynb")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390


@pytest.mark.parametrize("chapter", ["04_denoising_score_matching", "08_low_density_regions"])
def test_a_formula_in_a_box_hides_its_shadow_in_the_color_of_the_box(visit, chapter):
    page = visit(color_scheme="dark").open(f"notebooks/{chapter}.html")
    found = page.evaluate(
        """() => {
            const color = written => {
                const probe = document.body.appendChild(document.createElement('i'));
                probe.style.color = written;
                const seen = getComputedStyle(probe).color;
                probe.remove();
                return seen;
            };
            const behind = element => {
                const here = getComputedStyle(element).backgroundColor;
                return here === 'rgba(0, 0, 0, 0)' ? behind(element.parentElement) : here;
            };
            const formulas = '.bd-content mjx-container[display="true"]';
            return [...document.querySelectorAll(formulas)].map(m => [
                color(getComputedStyle(m).getPropertyValue('--ground')), behind(m.parentElement),
            ]);
        }"""
    )
    assert len({behind for _, behind in found}) > 1  # on the page and in a box
    assert [pair for pair in found if pair[0] != pair[1]] == []


def complaints_of_axe(page):
    """What axe-core finds serious: names, order, roles, contrast, and contrast in the dark."""
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")
    page.evaluate(AXE)
    serious = {}
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.wait_for_function("s => document.documentElement.dataset.theme === s", arg=scheme)
        options = {"resultTypes": ["violations"]} | rules
        result = page.evaluate("options => axe.run(options)", options)
        serious[scheme] = [
            (violation["id"], [node["html"][:200] for node in violation["nodes"][:3]])
            for violation in result["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
    return serious


def travels(response):
    """Bytes of a response: text is compressed, as web servers do, fonts and images are not."""
    kind, body = response.headers.get("content-type", ""), response.body()
    return len(gzip.compress(body)) if any(text in kind for text in TEXT) else len(body)


def test_links_between_pages_lead_somewhere():
    """Each link of each page to a place of the site: the file and the place exist."""
    places, wanted = {}, []
    for path in PAGES:
        soup = BeautifulSoup((HTML / path).read_text(encoding="utf-8"), "html.parser")
        places[path] = {element["id"] for element in soup.select("[id]")}
        for link in soup.select("article a[href]"):
            file, _, place = link["href"].partition("#")
            if not urlsplit(file).scheme:
                target = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(file)))
                wanted.append((path, target if file else path, place))
    lost = [
        (path, file, place)
        for path, file, place in wanted
        if not (file in places or (HTML / file).is_file())
        or (place and place not in places.get(file, {place}))
    ]
    assert len(wanted) > 1000
    assert lost == []


def test_search_finds_a_chapter(visit):
    page = visit().open("search.html?q=annealed+Langevin")
    page.wait_for_selector("#search-results li a")
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    assert any("11_annealed_langevin" in target for target in found)


def test_a_search_result_is_a_sentence(visit):
    page = visit().open("search.html?q=langevin")
    page.wait_for_selector("#search-results p.context")
    shown = page.locator("li:has(a[href*='notebooks/']) p.context").all_inner_texts()[:8]
    assert shown
    assert all(re.match(r"(?s)\W*[A-Z].*[.?!:”]$", text) for text in shown)
    assert not any("Contents" in text or "import " in text for text in shown)


def test_a_chapter_is_described_by_its_card(visit):
    words = "The sampler that needs nothing but a score, and what a finite step costs (§2.2)."
    page = visit().open("notebooks/06_langevin_dynamics.html")
    for name in ('property="og:description"', 'name="description"'):
        assert page.locator(f"meta[{name}]").get_attribute("content") == words


def test_the_keyboard_reaches_content_search_and_solutions(visit):
    page = visit().open("notebooks/11_annealed_langevin.html")
    page.keyboard.press("Tab")
    assert "Skip to main content" in page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Control+k")
    page.wait_for_function("document.activeElement.type === 'search'")
    page.keyboard.press("Escape")
    solution = page.query_selector(".admonition.dropdown.toggle-hidden")
    solution.query_selector("button.toggle-button").focus()
    page.keyboard.press("Enter")
    assert "toggle-hidden" not in solution.get_attribute("class")


def test_a_player_moves_by_keyboard_and_plays_at_a_button(visit):
    page = visit(reduced_motion="reduce").open("notebooks/11_annealed_langevin.html")
    box = page.locator(".ncsn-player").first
    before = box.locator("output").inner_text()
    box.locator("input").focus()
    page.keyboard.press("ArrowLeft")
    after = box.locator("output").inner_text()
    assert after != before
    shown = box.locator("img:visible")
    assert shown.count() == 1
    assert shown.get_attribute("data-label") == after
    box.scroll_into_view_if_needed()
    box.get_by_role("button", name="Play").click()
    page.wait_for_function(
        "l => document.querySelector('.ncsn-player output').value != l", arg=after
    )
    box.get_by_role("button", name="Pause").click()


def test_light_and_dark_can_be_switched(visit):
    page = visit(color_scheme="light").open("book/intro.html")
    themes = set()
    for _ in range(3):
        themes.add(page.evaluate("document.documentElement.dataset.theme"))
        page.locator("button.theme-switch-button").first.click()
    assert themes == {"light", "dark"}


def test_paper_is_light_with_open_boxes_and_last_frames(visit):
    page = visit(color_scheme="dark").open("book/intro.html")
    theme = "document.documentElement.dataset.theme"
    slider = page.locator(".ncsn-player input").first
    last = "document.querySelector('.ncsn-player input').value"
    shown = page.evaluate(f"dispatchEvent(new Event('beforeprint')); [{theme}, {last}]")
    assert shown == ["light", slider.get_attribute("max")]
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(theme) == "dark"


def test_the_sidebar_shows_where_one_is(visit):
    one = visit()
    one.open("book/intro.html")
    page = one.open("book/glossary.html")  # the theme keeps the sidebar where it was
    place = page.locator(".bd-sidebar-primary li.current.active").last.bounding_box()
    assert 0 < place["y"] < 900


def test_a_guess_is_kept_and_met_again(visit):
    page = visit().open("notebooks/10_ncsn.html")
    recap, form = page.locator(".ncsn-recap"), page.locator(".ncsn-guess").first
    assert not recap.is_visible()
    form.locator("input").fill("a factor of ten")
    page.keyboard.press("Enter")
    page.reload()
    assert form.locator("input").input_value() == "a factor of ten"
    assert "Your guess: a factor of ten" in recap.inner_text()


def test_chapters_figures_and_formulas_have_numbers(visit):
    page = visit().open("notebooks/10_ncsn.html")
    assert page.title().startswith("10. ")
    assert page.locator("article h1").inner_text().startswith("10. ")
    captions = page.locator(".caption-number").all_inner_texts()
    assert len(captions) > 3
    assert all(re.fullmatch(r"(Fig\.|Table|Exercise) 10\.\d+ ?", caption) for caption in captions)
    assert page.locator("span.eqno").first.inner_text().startswith("(10.1)")
    assert page.locator("nav.bd-links").get_by_text("10. Noise", exact=False).count() == 1


def test_on_a_phone_a_row_of_a_table_is_a_card(visit):
    page = visit(viewport={"width": 390, "height": 844}).open("book/scorecard.html")
    cell = page.locator("table[data-cards] tbody td").nth(1)
    assert cell.locator(".ncsn-head").inner_text() == "Verdict"
    assert cell.bounding_box()["width"] > 250


def test_a_link_to_a_claim_opens_it(visit):
    page = visit().open("book/scorecard.html")
    assert not page.locator("#claim-19").is_visible()
    page.goto(page.url + "#claim-19")
    assert page.locator("#claim-19").is_visible()
