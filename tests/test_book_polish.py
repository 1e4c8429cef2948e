"""Corrections to what Sphinx and its theme have written."""

from types import SimpleNamespace

from ncsn_book.polish import correct, polish

PAGE = """<head>
  <script defer src="../_static/scripts/fontawesome.js?digest=55c"></script>
<script defer src="../_static/scripts/bootstrap.js?digest=55c"></script>
</head>
<details><summary><span class="toctree-toggle" role="presentation"></span></summary></details>
<details><summary>Click to show</summary></details>
<div role="list" class="citation-list"></div>
<div role="list" class="other"></div>
"""
FORMULA = r'<p>Let <span class="math notranslate nohighlight">\(x &lt; 1\)</span>, and so on.</p>'
TABLE = """<table class="table">
<thead><tr><th><p>\\(n\\)</p></th><th>A &amp; <em>B</em></th><th>C</th></tr></thead>
<tbody><tr><td>1</td><td>b</td><td class="x">c</td></tr>
<tr><td>2</td><td>b</td></tr></tbody></table>
"""


def test_arrows_have_a_name_and_lists_have_items(tmp_path):
    path = tmp_path / "notebooks" / "page.html"
    path.parent.mkdir()
    path.write_text(PAGE)
    polish(tmp_path)
    text = path.read_text()
    assert '<summary aria-label="Sections"><span class="toctree-toggle"' in text
    assert "<summary>Click to show</summary>" in text
    assert '<div class="citation-list">' in text
    assert '<div role="list" class="other">' in text
    assert "fontawesome.js" not in text
    assert "bootstrap.js" in text


def test_a_corrected_page_is_left_alone(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    polish(tmp_path)
    before = path.read_text(), path.stat().st_mtime_ns
    polish(tmp_path)
    assert (path.read_text(), path.stat().st_mtime_ns) == before


def test_a_site_that_was_built_is_corrected_and_nothing_else(tmp_path):
    (tmp_path / "page.html").write_text(PAGE)
    for format_, error in (("latex", None), ("html", ValueError())):
        correct(SimpleNamespace(builder=SimpleNamespace(format=format_), outdir=tmp_path), error)
        assert (tmp_path / "page.html").read_text() == PAGE
    correct(SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path), None)
    assert "fontawesome.js" not in (tmp_path / "page.html").read_text()


def polished(folder, text):
    (folder / "page.html").write_text(text)
    polish(folder)
    once = (folder / "page.html").read_text()
    polish(folder)
    assert (folder / "page.html").read_text() == once
    return once


def test_no_line_begins_with_a_comma(tmp_path):
    assert r"\)</span>,</span> and so on" in polished(tmp_path, FORMULA)


def test_cells_of_three_columns_know_their_head(tmp_path):
    text = polished(tmp_path, TABLE)
    assert text.startswith('<table data-cards class="table">')
    name = '<span class="ncsn-head" aria-hidden="true">{}</span>'
    assert text.count("<td data-cell>" + name.format(r"\(n\)")) == 2
    assert text.count("<td data-cell>" + name.format("A &amp; <em>B</em>") + "b") == 2
    assert '<td data-cell class="x">' + name.format("C") + "c" in text
    two = TABLE.replace("<th>C</th>", "")
    assert polished(tmp_path, two) == two
