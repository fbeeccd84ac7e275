"""What runs a model elsewhere than in `generate()`."""
