"""Leave progress bars and other stderr output out of nbval's comparison."""

from typing import Any


def pytest_collectstart(collector: Any) -> None:
    """Skip the stderr stream of notebook cells."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
