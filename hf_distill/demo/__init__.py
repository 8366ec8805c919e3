"""Teacher and data of `hf-distill demo`: questions about real facts."""
