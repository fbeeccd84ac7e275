"""transformers' batch engine (`generate_batch()`, continuous batching)."""
