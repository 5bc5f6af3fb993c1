"""Rounds of training: who takes part, their local updates, the server's step."""
