"""Layers that know their role, blocks of them, networks of blocks."""
