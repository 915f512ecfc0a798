"""Patching: what is patched, what is put in, and the runs that measure it."""
