"""Pictures of runs: what panels show, of which runs, in which colors."""
