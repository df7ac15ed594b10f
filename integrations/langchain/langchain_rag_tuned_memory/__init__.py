"""LangChain and LangGraph on rag-tuned-memory."""
