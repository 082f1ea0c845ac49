"""Readers of the layout before passes, until the page and the artifacts no longer use them."""
