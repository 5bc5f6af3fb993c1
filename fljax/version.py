"""The version of fljax; what is installed takes it from here."""

VERSION = "0.1.0"
