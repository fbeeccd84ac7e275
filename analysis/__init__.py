"""What a model answers, how right that is, and what its thoughts hold."""
