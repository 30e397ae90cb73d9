"""The `varvel` command."""
