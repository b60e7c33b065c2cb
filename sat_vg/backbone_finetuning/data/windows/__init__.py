"""Windows of scenes: parts of one large image that are read as images, without a copy of their pixels."""
