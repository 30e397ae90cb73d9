"""Runner processes: lifecycle, pool and autoscaling, and the connection to them."""
