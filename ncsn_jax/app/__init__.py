"""The program: the only floor that reads a config."""
