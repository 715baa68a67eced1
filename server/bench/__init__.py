"""`continuo bench`: a load generator for any OpenAI-compatible server, which it knows only by its URL."""
