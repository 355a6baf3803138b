"""Search for the largest inner products, by FAISS."""
