"""Rows of a data set, from wherever they come, to the batches that a model is trained on."""
