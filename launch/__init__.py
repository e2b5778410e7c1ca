"""The `ser` command line and whole-recipe runs."""
