"""From files to packed batches: reading, checking, reducing judgments to relations, tokenizing, batching."""
