"""A report of runs: one page of HTML that needs no network, script or other file."""
