"""Trees of recovery points: folded from catalogs, checked, cut down, looked up; and the bytes in them."""
