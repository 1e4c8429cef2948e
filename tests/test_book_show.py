"""Tables and source listings of the chapters."""

import pytest
import torch

from ncsn_core.book import show


def documented(x):
    """A docstring with ''' and "quotes".

    On several lines.
    """
    # a comment
    y = x + 1
    return y


def undocumented(x):
    y = x + 1
    return y


class Holder:
    def method(self):
        """One line."""
        return [
            1,
        ]


def test_a_table_has_a_header_a_rule_and_its_rows():
    text = show.markdown_table(["a", "b"], [(1, 2.5), ("x", "$y$")])
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2.5 |", "| x | $y$ |"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="1 cells and the header has 2"):
        show.markdown_table(["a", "b"], [(1,)])


def test_a_body_has_neither_signature_nor_docstring():
    assert show.body_of(documented) == "# a comment\ny = x + 1\nreturn y"
    assert show.body_of(undocumented) == "y = x + 1\nreturn y"
    assert show.body_of(Holder.method) == "return [\n    1,\n]"


def test_what_is_shown_is_markdown(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", lambda markdown: shown.append(markdown.data))
    show.table(["a"], (1,))
    show.body(documented)
    assert shown == [
        "| a |\n| --- |\n| 1 |",
        f"`{__name__}.py`, `documented`:\n\n```python\n# a comment\ny = x + 1\nreturn y\n```",
    ]


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (..., 0.5, "No answer yet"),
        (0.502, 0.5, "Right."),
        (0.6, 0.5, "Not yet: off by 20%."),
        (float("nan"), 0.5, "Not yet: off by nan%."),
        ([1.0, 2.0], torch.tensor([1.0, 2.0]), "Right."),
        ([1.0], torch.tensor([1.0, 2.0]), "Not yet: the shape is [1], and not [2]."),
        (" Uphill", "uphill", "Right."),
        ("downhill", "uphill", "Not yet."),
    ],
)
def test_an_answer_is_judged(answer, expected, said, capsys):
    show.check(answer, expected)
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(
    ("answer", "said"), [(1002.34, "0.23%"), (1063, "6.3%"), (1099.6, "10%"), (2534, "153%")]
)
def test_a_small_error_is_not_rounded_away(answer, said, capsys):
    show.check(answer, 1000, within=1e-6)
    assert capsys.readouterr().out == f"Not yet: off by {said}.\n"


@pytest.mark.parametrize(
    ("answer", "said"), [(lambda x: x + x, "Right."), (torch.square, "Not yet")]
)
def test_a_function_is_judged_by_what_it_returns(answer, said, capsys):
    show.check(answer, lambda x: 2 * x, on=(torch.tensor([1.0, 3.0]),))
    assert capsys.readouterr().out.startswith(said)
