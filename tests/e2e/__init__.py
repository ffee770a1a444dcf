"""Whole clusters on real servers."""
