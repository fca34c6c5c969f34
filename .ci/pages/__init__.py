"""The pages of `docs/` that are made from the program itself: `make docs` writes them."""
