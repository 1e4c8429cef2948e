"""`python -m ncsn_core` is `ncsn`."""

from ncsn_core.cli import main

main()
