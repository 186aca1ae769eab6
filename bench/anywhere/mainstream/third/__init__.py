"""A third set of tutorials, drawn before any of them ran behind the guard."""
