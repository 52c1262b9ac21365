"""Who answered: traces of the routing, and what they tell."""
