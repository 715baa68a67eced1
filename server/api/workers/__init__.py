"""Several api processes behind one port: who accepts, whose a request is, and how it gets there."""
