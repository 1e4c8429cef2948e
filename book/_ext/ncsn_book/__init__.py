"""The book's Sphinx extension: numbers in prose, generated blocks, verdicts, published notebooks.

`_config.yml` names it, so that `jupyter-book build .` renders the book as `make html` does.  With
`NCSN_EXECUTED` in the environment a chapter shows its executed copy in place of its stored outputs.
"""

import os
from typing import Any

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the roles, the directive and what happens around them."""
    # Here, because executing a chapter needs nothing of it.
    from ncsn_book import colab, inserts, pages, polish, roles

    app.add_config_value("ncsn_executed", bool(os.environ.get("NCSN_EXECUTED")), "env", bool)
    for name, make in inserts.ROLES.items():
        app.add_role(name, roles.Insert(make))
    app.add_directive("ncsn-block", roles.Block)
    app.connect("config-inited", colab.configure)
    app.connect("env-get-outdated", pages.outdated)
    app.connect("source-read", pages.read_source)
    app.connect("autodoc-skip-member", pages.skip_alias)
    app.connect("html-page-context", pages.describe, priority=400)  # before sphinxext.opengraph
    app.connect("build-finished", colab.publish)
    app.connect("build-finished", polish.correct)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
