"""Making reward models: candidates, labels, training, held-out figures."""
