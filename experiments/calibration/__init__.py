"""What real steps took, fitted, and how well that predicts others."""
