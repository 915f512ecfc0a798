"""Estimates: derivatives in place of runs."""
