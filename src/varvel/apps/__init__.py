"""What is deployed: specs, loading, revisions and environments."""
