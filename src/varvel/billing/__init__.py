"""Units, machine types and prices, usage, and the FOCUS export."""
