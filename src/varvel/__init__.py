"""Varvel: deploy Python apps on your own machines and look after them through a Platform API."""

__version__ = "0.1.0"
