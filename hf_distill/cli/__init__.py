"""The command line: one module a command, found by ``hf_distill.cli.main``."""
