"""The plan from a teacher to a served student: shape, stages, times, all measured."""
