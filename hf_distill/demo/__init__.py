"""What `hf-distill demo` runs on: pretrained encoders and questions about real facts."""
