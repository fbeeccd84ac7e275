"""The trainers: one per method, each only its difference from the first."""
