"""Runs inside a runner's process, in the app's own environment. Standard library and uvicorn only."""
