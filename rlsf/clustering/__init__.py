"""What prompts and answers are about: embeddings, clusters, and which task is on where nobody says."""
