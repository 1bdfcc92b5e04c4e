"""A corpus of picture files that are made in code, and what must become of each."""
