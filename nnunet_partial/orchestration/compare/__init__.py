"""Methods side by side on one split."""
