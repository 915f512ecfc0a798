"""Circuits: running some edges of a model alone, choosing them, and curves of many circuits."""
