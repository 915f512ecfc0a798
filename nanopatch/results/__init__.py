"""Results: they say what they are, and show, save and load themselves."""
