"""Files become documents, documents become ids."""
