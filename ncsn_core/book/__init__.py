"""What chapters import beside the science: claims and their ledger, figures, model cards.

Each module is imported by its own name.  What executes the chapters and makes the site is not in
the package: it is the extension `book/_ext/ncsn_book` of the repository.
"""
