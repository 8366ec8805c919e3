"""The metric of SQuAD v2.0."""
