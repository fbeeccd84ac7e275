"""Models and their tokenizers: how they are read, changed for training, written, described and shared."""
