"""Host side of the input: sources of records, decoding and cropping, tokenizers. TensorFlow is imported here, lazily, and nowhere else."""
