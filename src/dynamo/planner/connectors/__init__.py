"""Where workers come from: what the planner asks to start and end them."""
