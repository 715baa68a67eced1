"""One engine a file, loaded in a process of its own: `load` gives a function of prompts and a token count.

A file imports nothing of the others, and runs in whichever environment has its engine.
"""
