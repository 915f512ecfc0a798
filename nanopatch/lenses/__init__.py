"""Lenses: what the parts of one run show."""
