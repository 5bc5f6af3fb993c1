"""Runs side by side: their figures, how far one is ahead of another, tables."""
