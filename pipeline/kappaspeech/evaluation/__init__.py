"""What a trained model is worth: word error rate on speech, and what it has forgotten of text."""
