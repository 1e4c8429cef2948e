"""What only the book needs: its ledger of claims, notebook runner, site and figure style.

Chapters import `claims`, `style`, `show`, `animation`, `slider` and `cards`; the `ncsn book`
commands use the rest.
Each module is imported by its own name, so that a chapter never loads the build tools.
"""
