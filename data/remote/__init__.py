"""Images and vectors in object storage, by the URLs of fsspec."""
