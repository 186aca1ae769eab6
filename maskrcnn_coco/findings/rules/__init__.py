"""One file a code: the rule that reads the facts, and the text that ``explain CODE`` prints. No torch."""
