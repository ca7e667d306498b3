"""pplleak: what does a gradient shared in federated learning reveal about the private data behind it?"""
