"""The measures of a trained model: word error rate on speech, and forgetting of text."""
