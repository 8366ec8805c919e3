"""The command line: one module per command, found by ``hf_distill.cli.main``."""
