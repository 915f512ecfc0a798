"""Reading one run: which part of it says what."""
