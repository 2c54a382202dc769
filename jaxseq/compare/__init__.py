"""The comparison: trains architectures of equal size on the same text and reports their quality and their costs."""
