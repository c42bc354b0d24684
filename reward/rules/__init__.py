"""What a completion can break: conditions, words, detectors of personal data and secrets, and how each is checked."""
