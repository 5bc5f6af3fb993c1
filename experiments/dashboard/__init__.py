"""A live page of run folders, in a browser of this machine."""
