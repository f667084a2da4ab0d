"""One update: statistics, loss, gradient, optimizer."""
