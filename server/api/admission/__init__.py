"""Who is let in, and when those come back who are not. Knows no HTTP and no text; time is an argument."""
