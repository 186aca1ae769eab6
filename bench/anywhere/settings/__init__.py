"""Every optimizer of torch with every setting at values that are wrong, and at odd ones that are sound."""
