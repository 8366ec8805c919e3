"""The version of hf_distill, in one place."""

__version__ = "0.1.0"
