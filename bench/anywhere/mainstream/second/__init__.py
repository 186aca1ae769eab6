"""A second set of tutorials, drawn before any of them ran behind the guard."""
