"""Answers to a whole file, in order, by one process or many, through any number of kills."""
