"""The version of this package: part of what a resumed run must agree on."""

VERSION = "0.1.0"
NUMERICS = 2
"""Raised whenever a change alters the bits that any plan gives."""
