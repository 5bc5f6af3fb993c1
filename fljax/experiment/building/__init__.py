"""Builds an experiment from its configuration: library calls only."""
