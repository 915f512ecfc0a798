"""The interactive page: its HTML, CSS and JavaScript, and what puts them together. It knows nothing of models."""
