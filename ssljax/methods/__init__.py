"""One file a method; the file name is the name in a config."""
