"""What is counted, and its page."""
