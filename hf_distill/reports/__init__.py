"""Reports of runs: the comparison of teacher, student alone and student distilled."""
