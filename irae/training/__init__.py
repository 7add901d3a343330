"""Training from a recipe: everything that a shipped weight needs to be made again."""
