"""One run: the loop, what it holds, how it starts, answers, goes back, saves, ends."""
