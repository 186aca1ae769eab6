"""From an alarm to a proved cause."""
