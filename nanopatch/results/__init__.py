"""What comes out: results that know what they are, and show, save and load themselves."""
