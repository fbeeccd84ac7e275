"""Task files for lm-evaluation-harness, and what they need beside YAML."""
