"""Tests; a package, so that they share oracle.py."""
