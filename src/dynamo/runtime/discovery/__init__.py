"""How processes find each other."""
