"""Keys, scopes, rate limits and ownership."""
