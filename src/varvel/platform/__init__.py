"""The Platform API, a module a section of its page."""
