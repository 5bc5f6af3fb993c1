"""Data sets in host memory and their splits over clients."""
