"""The metric of SQuAD v1.1."""
