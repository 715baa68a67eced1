"""Structured output: which tokens a grammar allows next, found out in processes that can be killed."""
