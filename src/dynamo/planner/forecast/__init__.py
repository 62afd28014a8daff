"""What is coming, from what was: one number per interval."""
