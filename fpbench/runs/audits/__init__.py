"""Both halves of a question of ownership, answers and weights, in one report that is written from records alone."""
