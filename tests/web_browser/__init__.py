"""The page in a real browser, with the whole system behind it: a few stories, as people live them."""
