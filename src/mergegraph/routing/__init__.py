"""Prompts → router rows: what a mixture of experts routes by, before anything is trained."""
