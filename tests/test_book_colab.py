"""Published notebooks: buttons, and the cell that installs the package."""

import ast

import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from test_book_site import REPOSITORY

from ncsn_core.book import colab

URL = "https://github.com/Somebody/score-book"
WHEEL = "https://somebody.github.io/score-book/ncsn_core-0.1.0-py3-none-any.whl"


@pytest.fixture
def config():
    return yaml.safe_load((REPOSITORY / "_config.yml").read_text())


def test_without_an_address_there_are_no_buttons(config):
    config["repository"]["url"] = ""
    assert colab.address(config) == ""
    assert colab.configure(config) == config
    assert not config["html"]["use_issues_button"]
    assert "colab_url" not in config["launch_buttons"]


def test_with_an_address_every_button_leads_to_it(config):
    config["repository"]["url"] = URL + "/"
    assert colab.address(config) == URL
    published = colab.configure(config)
    assert published["repository"]["url"] == URL + "/"
    assert published["repository"]["branch"] == colab.BRANCH
    assert published["repository"]["path_to_book"] == "_sources"
    assert published["html"]["use_issues_button"]
    assert published["html"]["home_page_in_navbar"] == config["html"]["home_page_in_navbar"]
    assert published["launch_buttons"]["colab_url"] == "https://colab.research.google.com"


def test_the_wheel_lies_beside_the_site():
    assert colab.wheel_address(URL, "0.1.0") == WHEEL


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
