"""Deploying and looking after apps: what the command line talks to."""
