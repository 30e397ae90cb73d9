"""The Platform API on the whole server, with data from real requests."""
