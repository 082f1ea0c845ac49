"""The tables and figures of the papers: what each needs, and how it is made from finished runs."""
