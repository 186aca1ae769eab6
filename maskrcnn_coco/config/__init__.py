"""The settings: typed, from a recipe, without gaps."""
