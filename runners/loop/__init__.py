"""One stage of training: collect, score, prepare, loss, step; log, evaluate, checkpoint."""
