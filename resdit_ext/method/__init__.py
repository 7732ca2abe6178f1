"""The method of the paper (arXiv 2512.01426): maths on tensors, torch alone; nobody else's object is touched here."""
