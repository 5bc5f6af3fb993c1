"""Algorithms whose clients have networks of their own, in part or in whole."""
