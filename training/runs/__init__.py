"""A whole run: its plan, and its stages in order."""
