"""What is in a checkpoint, and what will be in one: pure values, no file access."""
