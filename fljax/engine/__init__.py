"""A round: one client, the cohort, programs, evaluation, the schedule."""
