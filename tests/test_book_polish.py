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
