"""Mixtures of experts as mergekit-moe 0.1.5 builds them, and as it is done here."""
