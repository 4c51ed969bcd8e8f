"""Prompts: rendering of comparisons as text, truncation to a token budget, and tokenisation."""
