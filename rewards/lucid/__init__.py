"""LucidConsistency: whether SR shows what LR shows, by embeddings of both."""
