"""Published notebooks: buttons, and the cell that installs the package."""

import ast
from types import SimpleNamespace

import pytest
from jupyter_book.config import get_final_config
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_book_site import REPOSITORY

from ncsn_book import colab
from ncsn_book.execution import BookError

URL = "https://github.com/Somebody/score-book"
WHEEL = "https://somebody.github.io/score-book/ncsn_core-0.1.0-py3-none-any.whl"


@pytest.fixture
def options():
    """The options of the theme that the buttons follow, as jupyter-book makes them."""
    cli = {"latex_individualpages": False}
    config, _ = get_final_config(user_yaml=REPOSITORY / "_config.yml", cli_config=cli)
    return config["html_theme_options"]


def configured(options):
    config = SimpleNamespace(html_theme_options=options)
    colab.configure(None, config)
    return config.html_theme_options


def test_without_an_address_there_are_no_buttons(options):
    options["repository_url"] = ""
    assert configured(options) is options
    assert not options["use_issues_button"]
    assert not options["launch_buttons"]["colab_url"]


def test_with_an_address_every_button_leads_to_it(options):
    published = configured({**options, "repository_url": URL + "/"})
    assert published["repository_url"] == URL
    assert published["repository_branch"] == colab.BRANCH
    assert published["path_to_docs"] == "_sources"
    assert published["use_repository_button"]
    assert published["use_issues_button"]
    assert published["home_page_in_toc"] == options["home_page_in_toc"]
    assert published["launch_buttons"]["colab_url"] == "https://colab.research.google.com"


def test_the_wheel_lies_beside_the_site():
    for url in (URL, URL + "/"):
        assert f"{colab.site_address(url)}ncsn_core-0.1.0-py3-none-any.whl" == WHEEL


@pytest.mark.parametrize(
    "spelling",
    [
        "https://github.com/Somebody/score-book.git",
        "https://github.com/Somebody/score-book.git/",
        "  https://github.com/Somebody/score-book//\n",
        "http://www.github.com/Somebody/score-book",
        "github.com/Somebody/score-book",
        "git@github.com:Somebody/score-book.git",
        "ssh://git@github.com/Somebody/score-book.git",
        "ssh://git@github.com:22/Somebody/score-book",
        "git://github.com/Somebody/score-book.git",
        "git+https://token@GitHub.com/Somebody/score-book",
    ],
)
def test_a_repository_is_known_by_every_spelling_of_its_address(options, spelling):
    published = configured({**options, "repository_url": spelling})
    assert published["repository_url"] == URL
    assert f"{colab.site_address(spelling)}ncsn_core-0.1.0-py3-none-any.whl" == WHEEL


def test_the_repository_of_a_users_site_is_that_site():
    url = "https://github.com/Somebody/somebody.github.io"
    assert colab.site_address(url) == "https://somebody.github.io/"


@pytest.mark.parametrize(
    "wrong",
    [
        "https://gitlab.com/somebody/score-book",
        "https://github.com/somebody",
        "https://github.com/somebody/score-book/tree/main",
        "https://notgithub.com/somebody/score-book",
        "somebody/score-book",
        "yes",
    ],
)
def test_an_address_of_no_github_repository_is_refused_by_name(options, wrong):
    with pytest.raises(
        BookError, match=r"repository.url in _config.yml must be .*; got '"
    ) as caught:
        configured({**options, "repository_url": wrong})
    assert repr(wrong) in str(caught.value)


def test_a_published_notebook_installs_the_package_first_and_picks_the_device():
    parameters = new_code_cell(
        'device = "cpu"  # where\nseed = 0', metadata={"tags": ["parameters"]}
    )
    other = new_code_cell('device = "cpu"')
    notebook = new_notebook(cells=[new_markdown_cell("# T"), parameters, other])
    stamped = colab.stamp(notebook, WHEEL)
    setup = stamped.cells[0]
    assert setup.metadata["tags"] == ["remove-cell"]
    assert f"ncsn-core @ {WHEEL}" in setup.source
    ast.parse(setup.source)
    assert stamped.cells[2].source == f"{colab.PICK}  # where\nseed = 0"
    assert stamped.cells[3].source == other.source
    assert len(notebook.cells) == 3  # the original stays
    assert notebook.cells[1].source.startswith('device = "cpu"')
