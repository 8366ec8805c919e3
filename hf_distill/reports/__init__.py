"""What a run was worth: the comparison of teacher, student alone and student distilled."""
