"""Folders that hold a model: ours, and other layouts turned into ours and back."""
