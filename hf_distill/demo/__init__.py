"""What `hf-distill demo` runs on: a teacher, and questions about real facts."""
