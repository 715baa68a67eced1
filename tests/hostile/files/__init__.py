"""Model directories that nobody vouches for, given to the real loading code in processes of their own."""
