"""llama-index on rag-tuned-memory."""
