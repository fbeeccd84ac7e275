"""Checkpoints in other forms: of other code, for other engines, for the Hub."""
