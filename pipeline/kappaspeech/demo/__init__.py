"""Small real models and generated speech, from the package index alone, so that everything runs without a hub."""
