"""What scores are computed by: one module a family of metrics."""
