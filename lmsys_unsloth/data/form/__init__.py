"""What the form of responses predicts: features, a logistic regression on them, and its offset."""
