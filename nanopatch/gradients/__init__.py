"""Estimating it: derivatives in place of runs."""
