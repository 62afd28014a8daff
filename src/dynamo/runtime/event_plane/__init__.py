"""What many hear of at once, and how it reaches them."""
