"""The guard in anybody's training: attached to a model and an optimizer, whatever loop calls them."""
